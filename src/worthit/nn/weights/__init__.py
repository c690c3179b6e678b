"""Weights in and out: what published checkpoints call our parameters, and how they lay them out."""

from __future__ import annotations
