"""The figures of a run: their schema, how they are computed, and what a report shows beside them."""
