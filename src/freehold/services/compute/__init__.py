"""Compute: jobs that run on others' processors, with receipts that can be disputed."""
