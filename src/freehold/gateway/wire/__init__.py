"""The S3 protocol as pure functions: bytes and strings in, values out.

Nothing here does I/O or reads a clock (`now` is handed in), and whatever comes in gives a value or an S3Error.
"""
