"""Mixtures of experts: routers, balance, and execution grouped by expert."""
