"""The protocol: pure, integer, deterministic. It imports nothing of ours and does no I/O; it is the specification."""
