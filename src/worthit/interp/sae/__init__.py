"""Sparse autoencoders: readable features of activations; one kind a file."""
