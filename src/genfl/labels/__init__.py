"""Which label names exist over all clients, without learning who holds which."""
