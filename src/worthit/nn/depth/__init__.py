"""Depth that adapts: skipped, repeated and early-left layers."""
