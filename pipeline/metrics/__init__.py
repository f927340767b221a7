"""Features of images to numbers, by protocols that say how each was taken. Pure functions; no network is known by name."""
