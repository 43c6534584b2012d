"""Signed HTTP between parties: one client, one server, one error tree."""
