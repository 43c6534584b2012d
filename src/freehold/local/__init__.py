"""The local network: processes on this machine, supervised."""
