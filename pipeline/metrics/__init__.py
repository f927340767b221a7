"""Features of images to numbers, by protocols that say how each was taken. No network is known by name."""
