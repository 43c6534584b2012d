"""Storage: encrypted, erasure-coded files on operators' disks, proven every epoch."""
