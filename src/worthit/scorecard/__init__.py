"""What was measured, beside what was claimed and predicted: one JSON file an experiment."""
