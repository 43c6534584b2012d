"""A member of the quorum: a state machine without I/O, and the adapters that give it a chain, a disk and a network."""
