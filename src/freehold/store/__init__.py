"""What a process keeps: blobs on disk and rows in SQL. Nothing is acknowledged before it is durable."""
