"""Images out of a trained generator. Knows generators by their protocol, not by family."""
