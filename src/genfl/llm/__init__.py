"""Chat models: one interface to models that run here and models behind a server."""
