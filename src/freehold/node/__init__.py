"""The operator's process: hosts providers, keeps the book of leases, answers the quorum."""
