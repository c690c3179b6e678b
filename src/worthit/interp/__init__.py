"""Looking inside a model: what it computes on the way, what of it can be read, and changed."""
