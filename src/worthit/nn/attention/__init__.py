"""Mixers that compare queries with keys, and their linear-time relatives."""
