"""Federations of real machines: the pipeline at a server without private data, and its clients."""
