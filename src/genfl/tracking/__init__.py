"""Figures of a run while it works: the file metrics.jsonl, and trackers of other programs."""
