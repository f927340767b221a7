"""Native data sets to shards: sources open images, transform cuts them, writer packs them, verify checks."""
