"""The stages of the pipeline. Each one turns its inputs into files in its folder."""
