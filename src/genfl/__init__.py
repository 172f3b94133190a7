"""genfl: federated learning with generative content (GPT-FL), end to end."""

__version__ = "0.1.0"
