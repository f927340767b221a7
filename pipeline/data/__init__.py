"""Prepared data sets: the manifest, the order of images, the reader."""
