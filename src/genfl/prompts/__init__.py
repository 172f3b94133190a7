"""From label names to many diverse prompts."""
