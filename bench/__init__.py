"""Measurements: `make bench NAME=...`. They never run inside tests, and only ratios within one run mean anything."""
