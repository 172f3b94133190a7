"""Attacks: what somebody can learn about private examples from the models that a run produced."""
