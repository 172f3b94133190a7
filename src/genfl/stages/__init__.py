"""The steps of the pipeline, each from its config to files in its folder."""
