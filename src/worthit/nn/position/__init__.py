"""How a model knows order: added, rotated, biased, or not at all."""
