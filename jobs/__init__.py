"""Running work on a cluster, or on this machine as if it were one. Knows no network and no loss."""
