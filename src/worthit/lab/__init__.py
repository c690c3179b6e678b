"""The laboratory: predictions made answerable, by tasks, experiments and what they decide."""
