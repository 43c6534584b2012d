"""The client's half: account, fh:// paths, buckets, and the SDK that the CLI and other programs use."""
