"""From prompts to labelled synthetic samples."""
