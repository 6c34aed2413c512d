"""Reports a run to experiment trackers, besides its own metrics.jsonl."""
