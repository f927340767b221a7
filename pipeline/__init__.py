"""Graticule's training pipeline: shards in; trained, tracked and registered generators out."""
