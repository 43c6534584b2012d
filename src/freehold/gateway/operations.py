"""Every operation of S3: how a request names it, what it needs, and what this gateway makes of it.

The table is all there is: `app.py` routes by it, `access.py` reads from it what is to be allowed, and docs/s3.md is
written from it (`scripts/s3_table.py`). Invariant: an operation that is known and not offered answers NotImplemented
and is named; one is offered exactly if a handler is registered under its name (the tests hold both against each other).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from enum import Enum
from typing import NamedTuple


class Level(Enum):
    """What the path names."""

    SERVICE = "service"
    BUCKET = "bucket"
    OBJECT = "object"


class Operation(NamedTuple):
    """One operation of S3.

    `marks`: the query parameters, and `header`: the request header, by which it is told from others of its method.
    `action`: what bucket policies call it. `grant`: which operation of a grant covers it; "" for none does.
    `note`: how it differs from AWS.
    """

    name: str
    level: Level
    method: str
    marks: tuple[str, ...] = ()
    action: str = ""
    grant: str = ""
    header: str = ""
    offered: bool = True
    note: str = ""


SERVICE, BUCKET, OBJECT = Level.SERVICE, Level.BUCKET, Level.OBJECT
COPY = "x-amz-copy-source"
LIST_NOTE = "sizes, names and times are exact; `Owner` is the account"


def _refused(level: Level, method: str, mark: str, *names: str) -> list[Operation]:
    return [Operation(name, level, method, tuple(mark.split("&")) if mark else (), offered=False) for name in names]


OPERATIONS: tuple[Operation, ...] = (
    # Service
    Operation("ListBuckets", SERVICE, "GET", action="s3:ListAllMyBuckets", grant="list", note="the account's buckets"),
    # Buckets
    Operation("CreateBucket", BUCKET, "PUT", action="s3:CreateBucket", note="names are the account's own"),
    Operation("DeleteBucket", BUCKET, "DELETE", action="s3:DeleteBucket"),
    Operation("HeadBucket", BUCKET, "HEAD", action="s3:ListBucket", grant="list"),
    Operation("ListObjects", BUCKET, "GET", action="s3:ListBucket", grant="list"),
    Operation("ListObjectsV2", BUCKET, "GET", ("list-type=2",), "s3:ListBucket", "list"),
    Operation("ListObjectVersions", BUCKET, "GET", ("versions",), "s3:ListBucketVersions", "list"),
    Operation("ListMultipartUploads", BUCKET, "GET", ("uploads",), "s3:ListBucketMultipartUploads", "list"),
    Operation("DeleteObjects", BUCKET, "POST", ("delete",), "s3:DeleteObject", "delete", note="one commit"),
    Operation("PostObject", BUCKET, "POST", action="s3:PutObject", grant="write", note="browser forms (SigV4)"),
    Operation("GetBucketLocation", BUCKET, "GET", ("location",), "s3:GetBucketLocation", "list"),
    Operation("GetBucketVersioning", BUCKET, "GET", ("versioning",), "s3:GetBucketVersioning", "list"),
    Operation(
        "PutBucketVersioning", BUCKET, "PUT", ("versioning",), "s3:PutBucketVersioning", note="without MFA delete"
    ),
    Operation(
        "GetObjectLockConfiguration", BUCKET, "GET", ("object-lock",), "s3:GetBucketObjectLockConfiguration", "list"
    ),
    Operation(
        "PutObjectLockConfiguration", BUCKET, "PUT", ("object-lock",), "s3:PutBucketObjectLockConfiguration"
    ),
    Operation("GetBucketCors", BUCKET, "GET", ("cors",), "s3:GetBucketCORS"),
    Operation("PutBucketCors", BUCKET, "PUT", ("cors",), "s3:PutBucketCORS"),
    Operation("DeleteBucketCors", BUCKET, "DELETE", ("cors",), "s3:PutBucketCORS"),
    Operation("GetBucketLifecycleConfiguration", BUCKET, "GET", ("lifecycle",), "s3:GetLifecycleConfiguration"),
    Operation(
        "PutBucketLifecycleConfiguration", BUCKET, "PUT", ("lifecycle",), "s3:PutLifecycleConfiguration",
        note="expiry of objects, versions, delete markers and uploads; no transitions: there is one storage class",
    ),
    Operation("DeleteBucketLifecycle", BUCKET, "DELETE", ("lifecycle",), "s3:PutLifecycleConfiguration"),
    Operation("GetBucketPolicy", BUCKET, "GET", ("policy",), "s3:GetBucketPolicy"),
    Operation("PutBucketPolicy", BUCKET, "PUT", ("policy",), "s3:PutBucketPolicy"),
    Operation("DeleteBucketPolicy", BUCKET, "DELETE", ("policy",), "s3:DeleteBucketPolicy"),
    Operation("GetBucketPolicyStatus", BUCKET, "GET", ("policyStatus",), "s3:GetBucketPolicyStatus"),
    Operation("GetBucketTagging", BUCKET, "GET", ("tagging",), "s3:GetBucketTagging"),
    Operation("PutBucketTagging", BUCKET, "PUT", ("tagging",), "s3:PutBucketTagging"),
    Operation("DeleteBucketTagging", BUCKET, "DELETE", ("tagging",), "s3:PutBucketTagging"),
    Operation(
        "GetBucketOwnershipControls", BUCKET, "GET", ("ownershipControls",), "s3:GetBucketOwnershipControls",
        note="always `BucketOwnerEnforced`",
    ),
    Operation(
        "PutBucketOwnershipControls", BUCKET, "PUT", ("ownershipControls",), "s3:PutBucketOwnershipControls",
        note="`BucketOwnerEnforced` only",
    ),
    Operation("GetBucketAcl", BUCKET, "GET", ("acl",), "s3:GetBucketAcl", note="the owner has FULL_CONTROL"),
    Operation(
        "PutBucketAcl", BUCKET, "PUT", ("acl",), "s3:PutBucketAcl",
        note="what says that only the owner has access; others answer AccessControlListNotSupported",
    ),
    Operation(
        "GetBucketEncryption", BUCKET, "GET", ("encryption",), "s3:GetEncryptionConfiguration",
        note="always AES256: everything is encrypted before it leaves the gateway",
    ),
    Operation("GetBucketRequestPayment", BUCKET, "GET", ("requestPayment",), "s3:GetBucketRequestPayment",
              note="always `BucketOwner`"),
    # Objects
    Operation("GetObject", OBJECT, "GET", action="s3:GetObject", grant="read", note="one range; `partNumber`"),
    Operation("HeadObject", OBJECT, "HEAD", action="s3:GetObject", grant="read"),
    Operation(
        "PutObject", OBJECT, "PUT", action="s3:PutObject", grant="write",
        note="up to 5 GiB; If-Match, If-None-Match; SSE `AES256` only; no appending",
    ),
    Operation("CopyObject", OBJECT, "PUT", action="s3:PutObject", grant="write", header=COPY,
              note="within one account; up to 5 GiB"),
    Operation("DeleteObject", OBJECT, "DELETE", action="s3:DeleteObject", grant="delete", note="If-Match"),
    Operation("GetObjectAttributes", OBJECT, "GET", ("attributes",), "s3:GetObjectAttributes", "read"),
    Operation("CreateMultipartUpload", OBJECT, "POST", ("uploads",), "s3:PutObject", "write"),
    Operation("UploadPart", OBJECT, "PUT", ("partNumber", "uploadId"), "s3:PutObject", "write"),
    Operation("UploadPartCopy", OBJECT, "PUT", ("partNumber", "uploadId"), "s3:PutObject", "write", COPY),
    Operation("CompleteMultipartUpload", OBJECT, "POST", ("uploadId",), "s3:PutObject", "write"),
    Operation("AbortMultipartUpload", OBJECT, "DELETE", ("uploadId",), "s3:AbortMultipartUpload", "write"),
    Operation("ListParts", OBJECT, "GET", ("uploadId",), "s3:ListMultipartUploadParts", "write"),
    Operation("GetObjectTagging", OBJECT, "GET", ("tagging",), "s3:GetObjectTagging", "read"),
    Operation("PutObjectTagging", OBJECT, "PUT", ("tagging",), "s3:PutObjectTagging", "write"),
    Operation("DeleteObjectTagging", OBJECT, "DELETE", ("tagging",), "s3:DeleteObjectTagging", "write"),
    Operation("GetObjectRetention", OBJECT, "GET", ("retention",), "s3:GetObjectRetention", "read"),
    Operation("PutObjectRetention", OBJECT, "PUT", ("retention",), "s3:PutObjectRetention"),
    Operation("GetObjectLegalHold", OBJECT, "GET", ("legal-hold",), "s3:GetObjectLegalHold", "read"),
    Operation("PutObjectLegalHold", OBJECT, "PUT", ("legal-hold",), "s3:PutObjectLegalHold"),
    Operation("GetObjectAcl", OBJECT, "GET", ("acl",), "s3:GetObjectAcl", "read", note="the owner has FULL_CONTROL"),
    Operation(
        "PutObjectAcl", OBJECT, "PUT", ("acl",), "s3:PutObjectAcl",
        note="what says that only the owner has access; others answer AccessControlListNotSupported",
    ),
    # Known, and not offered
    *_refused(SERVICE, "GET", "x-id=ListDirectoryBuckets", "ListDirectoryBuckets"),
    *_refused(BUCKET, "POST", "x-id=WriteGetObjectResponse", "WriteGetObjectResponse"),
    *_refused(BUCKET, "PUT", "encryption", "PutBucketEncryption"),
    *_refused(BUCKET, "DELETE", "encryption", "DeleteBucketEncryption"),
    *_refused(BUCKET, "DELETE", "ownershipControls", "DeleteBucketOwnershipControls"),
    *_refused(BUCKET, "PUT", "requestPayment", "PutBucketRequestPayment"),
    *_refused(BUCKET, "GET", "session", "CreateSession"),
    *_refused(BUCKET, "POST", "metadataConfiguration", "CreateBucketMetadataConfiguration"),
    *_refused(BUCKET, "GET", "metadataConfiguration", "GetBucketMetadataConfiguration"),
    *_refused(BUCKET, "DELETE", "metadataConfiguration", "DeleteBucketMetadataConfiguration"),
    *_refused(BUCKET, "POST", "metadataTable", "CreateBucketMetadataTableConfiguration"),
    *_refused(BUCKET, "GET", "metadataTable", "GetBucketMetadataTableConfiguration"),
    *_refused(BUCKET, "DELETE", "metadataTable", "DeleteBucketMetadataTableConfiguration"),
    *_refused(BUCKET, "PUT", "metadataAnnotationTable", "UpdateBucketMetadataAnnotationTableConfiguration"),
    *_refused(BUCKET, "PUT", "metadataInventoryTable", "UpdateBucketMetadataInventoryTableConfiguration"),
    *_refused(BUCKET, "PUT", "metadataJournalTable", "UpdateBucketMetadataJournalTableConfiguration"),
    *_refused(BUCKET, "GET", "abac", "GetBucketAbac"),
    *_refused(BUCKET, "PUT", "abac", "PutBucketAbac"),
    *_refused(BUCKET, "GET", "accelerate", "GetBucketAccelerateConfiguration"),
    *_refused(BUCKET, "PUT", "accelerate", "PutBucketAccelerateConfiguration"),
    *_refused(BUCKET, "GET", "analytics&id", "GetBucketAnalyticsConfiguration"),
    *_refused(BUCKET, "GET", "analytics", "ListBucketAnalyticsConfigurations"),
    *_refused(BUCKET, "PUT", "analytics", "PutBucketAnalyticsConfiguration"),
    *_refused(BUCKET, "DELETE", "analytics", "DeleteBucketAnalyticsConfiguration"),
    *_refused(BUCKET, "GET", "intelligent-tiering&id", "GetBucketIntelligentTieringConfiguration"),
    *_refused(BUCKET, "GET", "intelligent-tiering", "ListBucketIntelligentTieringConfigurations"),
    *_refused(BUCKET, "PUT", "intelligent-tiering", "PutBucketIntelligentTieringConfiguration"),
    *_refused(BUCKET, "DELETE", "intelligent-tiering", "DeleteBucketIntelligentTieringConfiguration"),
    *_refused(BUCKET, "GET", "inventory&id", "GetBucketInventoryConfiguration"),
    *_refused(BUCKET, "GET", "inventory", "ListBucketInventoryConfigurations"),
    *_refused(BUCKET, "PUT", "inventory", "PutBucketInventoryConfiguration"),
    *_refused(BUCKET, "DELETE", "inventory", "DeleteBucketInventoryConfiguration"),
    *_refused(BUCKET, "GET", "metrics&id", "GetBucketMetricsConfiguration"),
    *_refused(BUCKET, "GET", "metrics", "ListBucketMetricsConfigurations"),
    *_refused(BUCKET, "PUT", "metrics", "PutBucketMetricsConfiguration"),
    *_refused(BUCKET, "DELETE", "metrics", "DeleteBucketMetricsConfiguration"),
    *_refused(BUCKET, "GET", "logging", "GetBucketLogging"),
    *_refused(BUCKET, "PUT", "logging", "PutBucketLogging"),
    *_refused(BUCKET, "GET", "notification", "GetBucketNotificationConfiguration"),
    *_refused(BUCKET, "PUT", "notification", "PutBucketNotificationConfiguration"),
    *_refused(BUCKET, "GET", "publicAccessBlock", "GetPublicAccessBlock"),
    *_refused(BUCKET, "PUT", "publicAccessBlock", "PutPublicAccessBlock"),
    *_refused(BUCKET, "DELETE", "publicAccessBlock", "DeletePublicAccessBlock"),
    *_refused(BUCKET, "GET", "replication", "GetBucketReplication"),
    *_refused(BUCKET, "PUT", "replication", "PutBucketReplication"),
    *_refused(BUCKET, "DELETE", "replication", "DeleteBucketReplication"),
    *_refused(BUCKET, "GET", "website", "GetBucketWebsite"),
    *_refused(BUCKET, "PUT", "website", "PutBucketWebsite"),
    *_refused(BUCKET, "DELETE", "website", "DeleteBucketWebsite"),
    *_refused(OBJECT, "GET", "annotation&annotationName", "GetObjectAnnotation"),
    *_refused(OBJECT, "GET", "annotation", "ListObjectAnnotations"),
    *_refused(OBJECT, "PUT", "annotation", "PutObjectAnnotation"),
    *_refused(OBJECT, "DELETE", "annotation", "DeleteObjectAnnotation"),
    *_refused(OBJECT, "GET", "torrent", "GetObjectTorrent"),
    *_refused(OBJECT, "PUT", "renameObject", "RenameObject"),
    *_refused(OBJECT, "PUT", "encryption", "UpdateObjectEncryption"),
    *_refused(OBJECT, "POST", "restore", "RestoreObject"),
    *_refused(OBJECT, "POST", "select", "SelectObjectContent"),
)  # fmt: skip

BY_NAME = {operation.name: operation for operation in OPERATIONS}


def _by_request() -> dict[tuple[Level, str], tuple[Operation, ...]]:
    """Candidates of each level and method, those that ask for most first."""
    found: dict[tuple[Level, str], list[Operation]] = {}
    for operation in OPERATIONS:
        found.setdefault((operation.level, operation.method), []).append(operation)
    return {
        key: tuple(sorted(listed, key=lambda each: -2 * len(each.marks) - bool(each.header)))
        for key, listed in found.items()
    }


_CANDIDATES = _by_request()
_PLAIN = {
    (operation.level, operation.method): operation
    for operation in OPERATIONS
    if not operation.marks and not operation.header
}
# Parameters that name a part of a bucket or object: a write to one that has no such operation is not one of the whole.
_PARTS = {mark for each in OPERATIONS for mark in each.marks if "=" not in mark} - {
    "annotationName", "id", "partNumber", "uploadId",
}  # fmt: skip


def find_operation(
    level: Level, method: str, query: Mapping[str, str], headers: Container[str] = ()
) -> Operation | None:
    """The operation that a request asks for; None where S3 has none."""
    if not query and COPY not in headers:
        return _PLAIN.get((level, method))
    is_of_part = method in ("PUT", "POST", "DELETE") and not _PARTS.isdisjoint(query)
    for operation in _CANDIDATES.get((level, method), ()):
        if is_of_part and _PARTS.isdisjoint(operation.marks):
            continue
        if operation.header and operation.header not in headers:
            continue
        if all(_has(query, mark) for mark in operation.marks):
            return operation
    return None


def _has(query: Mapping[str, str], mark: str) -> bool:
    name, equals, value = mark.partition("=")
    return name in query and (not equals or query[name] == value)
