"""Freehold on a real chain: go-ethereum validators under Clique, each a process of its own. `make testnet`."""
