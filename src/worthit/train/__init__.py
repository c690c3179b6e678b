"""Training at the scale of an experiment: a readable loop, optimizers, number formats."""
