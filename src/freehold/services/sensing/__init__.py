"""Sensing: devices with a key and a place that report once an epoch."""
