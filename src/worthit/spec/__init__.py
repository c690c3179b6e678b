"""Facts as plain typed data: models, workloads, hardware, cases. Nothing here needs torch."""
