"""Positional Encoding as Spatial Inductive Bias in GANs (2012.05217): its experiments, row by row."""
