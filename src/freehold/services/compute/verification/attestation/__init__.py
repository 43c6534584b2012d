"""Attestation: whether a quote shows that hardware vouches for a receipt, and under which of its maker's roots.

`verify.py` is what others call; `sev.py` (AMD SEV-SNP) and `dcap.py` (Intel TDX and SGX) are the two forms of quotes,
`collateral.py` what their makers sign about platforms, `certificates.py` chains. Pure but for the roots that come along
(`roots/`): the time is handed in.
"""
