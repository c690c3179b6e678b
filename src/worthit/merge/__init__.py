"""Merging: one model out of several checkpoints, without training and without their data."""
