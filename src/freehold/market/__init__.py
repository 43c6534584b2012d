"""Offers, leases, reservations, vouchers, and the quorum as a sender of evidence sees it."""
