"""What a run reports: JSONL on disk first, the console and MLflow from there."""
