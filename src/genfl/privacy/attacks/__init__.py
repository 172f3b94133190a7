"""Attacks that measure what models and uploads give away of private data."""
