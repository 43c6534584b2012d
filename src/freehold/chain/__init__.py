"""The EVM chain as Freehold sees it: JSON-RPC, transactions, typed contracts, deployment, and final events in order."""
