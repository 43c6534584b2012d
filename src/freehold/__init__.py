"""Freehold: run infrastructure you own as one network, with every payment recomputable by anyone."""

__version__ = "0.1.0"
