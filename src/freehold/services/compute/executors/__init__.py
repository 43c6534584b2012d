"""Executors: each runs tasks of one kind within their limits, and says what it took."""
