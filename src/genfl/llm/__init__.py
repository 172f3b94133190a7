"""Chat models: asked in one way, whether they run here or behind a server."""
