"""The S3 gateway: HTTP as S3 clients speak it, on the buckets of one or many accounts."""
