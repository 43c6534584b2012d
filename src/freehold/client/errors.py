"""What can go wrong with buckets and objects, below the project's one tree of errors.

NotFound
├── BucketNotFound        no bucket of this name
├── KeyNotFound           no such object now; `delete_marker` and `version_id` where a marker hides it
├── VersionNotFound       the object has no such version
└── UploadNotFound        never begun, completed by somebody else, or aborted
Conflict
├── BucketExists          this account has a bucket of this name
└── ObjectReplaced        what was being read is gone, and something else stands there
Refused
├── BucketNotEmpty        it holds versions or unfinished uploads
├── InvalidBucketState    what is asked does not go with the bucket's versioning or object lock
├── PreconditionFailed    If-Match or If-None-Match does not hold                    (412)
├── ObjectLocked          a retention or a legal hold forbids it                     (403)
├── AccessDenied          a grant, key or policy does not allow it                   (403)
└── MethodNotAllowed      asked of a delete marker                                   (405)
InvalidInput
├── InvalidPart           a part that is not there, or is another one
├── InvalidPartOrder      part numbers must ascend
└── PartTooSmall          every part but the last has at least 5 MiB
"""

from __future__ import annotations

from freehold.protocol.errors import Conflict, InvalidInput, NotFound, Refused


class BucketNotFound(NotFound):
    code = "bucket_not_found"


class KeyNotFound(NotFound):
    code = "key_not_found"


class VersionNotFound(NotFound):
    code = "version_not_found"


class UploadNotFound(NotFound):
    code = "upload_not_found"


class BucketExists(Conflict):
    code, retryable = "bucket_exists", False


class ObjectReplaced(Conflict):
    code = "object_replaced"


class BucketNotEmpty(Refused):
    code = "bucket_not_empty"
    hint = "Remove its objects, versions and unfinished uploads first."


class InvalidBucketState(Refused):
    code = "invalid_bucket_state"


class PreconditionFailed(Refused):
    code, status = "precondition_failed", 412


class ObjectLocked(Refused):
    code, status = "object_locked", 403


class AccessDenied(Refused):
    code, status = "access_denied", 403


class MethodNotAllowed(Refused):
    code, status = "method_not_allowed", 405


class InvalidPart(InvalidInput):
    code = "invalid_part"


class InvalidPartOrder(InvalidInput):
    code = "invalid_part_order"


class PartTooSmall(InvalidInput):
    code = "part_too_small"
