"""Secure sums, which protect what clients upload."""
