"""The laboratory: tasks, experiments and what their outcomes say."""
