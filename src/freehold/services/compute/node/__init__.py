"""The node's half of compute: orders, what runs them, receipts, bids, and referee duty. `provider.py` wires it."""
