"""The client's half of compute, up to one node: bids, leases, orders, receipts. `client.py` wires it."""
