"""Bucket policies: validated when they are put, evaluated when a request comes.

Invariants: what is not understood is refused at PUT, never ignored; an explicit Deny wins over every Allow; a
condition on a key that a request does not have fails, but for negated operators, ...IfExists and Null (as AWS has it).
Principals are "*" or AWS: names are access key ids or labels, and ARNs count by what stands after the last slash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.policy_conditions import EXISTING_TAG, Condition, matches, parse_conditions

LARGEST = 20_480  # bytes
VERSIONS = ("2012-10-17", "2008-10-17")
ARN = "arn:aws:s3:::"
_KEYS = {"Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition"}
_ACTION = re.compile(r"\*|s3:[A-Za-z*?]+", re.IGNORECASE)


class PolicyRequest(NamedTuple):
    """What a policy is asked about.

    `action` is as "s3:GetObject", `resource` an ARN (`arn_of`), `principal` all names of the caller (access key id,
    label; none: anonymous). `facts` are values by lower-case condition key (after s3:existingobjecttag/ the tag as is).
    """

    action: str
    resource: str
    principal: tuple[str, ...]
    facts: Mapping[str, Sequence[str]]


class Statement(NamedTuple):
    """One statement. `principals` is None for everybody; `is_not_action` and `is_not_resource` turn a match round."""

    allows: bool
    principals: tuple[str, ...] | None
    actions: tuple[str, ...]
    is_not_action: bool
    resources: tuple[str, ...]
    is_not_resource: bool
    conditions: tuple[Condition, ...]

    def fits(self, request: PolicyRequest) -> bool:
        """Whether this statement speaks of the request."""
        if self.principals is not None and not set(self.principals) & set(request.principal):
            return False
        action = request.action.lower()
        if any(matches(pattern, action) for pattern in self.actions) == self.is_not_action:
            return False
        if any(matches(pattern, request.resource) for pattern in self.resources) == self.is_not_resource:
            return False
        return all(condition.holds(request.facts) for condition in self.conditions)


class Policy(NamedTuple):
    """A bucket's policy."""

    statements: tuple[Statement, ...]

    def evaluate(self, request: PolicyRequest) -> bool | None:
        """True: allowed; False: explicitly denied; None: nothing is said."""
        allowed: bool | None = None
        for statement in self.statements:
            if statement.fits(request):
                if not statement.allows:
                    return False
                allowed = True
        return allowed

    @property
    def asks_for_tags(self) -> bool:
        """Whether a condition is on the tags of the object."""
        return any(each.key.startswith(EXISTING_TAG) for s in self.statements for each in s.conditions)

    @property
    def is_public(self) -> bool:
        """Whether everybody is allowed something without a condition."""
        return any(s.allows and s.principals is None and not s.conditions for s in self.statements)


def arn_of(bucket: str, key: str = "") -> str:
    """The ARN of an object, or of a bucket."""
    return f"{ARN}{bucket}/{key}" if key else f"{ARN}{bucket}"


# --- reading ----------------------------------------------------------------------------------------------------------


def parse_policy(data: bytes, bucket: str) -> Policy:
    """The policy that JSON holds. S3Error MalformedPolicy that says why, or PolicyTooLarge."""
    if len(data) > LARGEST:
        raise S3Error("PolicyTooLarge")
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _malformed("Policies must be valid JSON and the first byte must be '{'") from None
    if not isinstance(document, dict):
        raise _malformed("Policies must be valid JSON and the first byte must be '{'")
    _check_keys(document, {"Version", "Id", "Statement"}, "the policy")
    if document.get("Version", VERSIONS[1]) not in VERSIONS:
        raise _malformed("The policy must contain a valid version string")
    if not isinstance(document.get("Id", ""), str):
        raise _malformed("Id must be text")
    statements = document.get("Statement")
    found = [statements] if isinstance(statements, dict) else statements
    if not isinstance(found, list) or not found:
        raise _malformed("Could not parse the policy: Statement is empty!")
    return Policy(tuple(_read_statement(value, bucket) for value in found))


def _malformed(why: str) -> S3Error:
    return S3Error("MalformedPolicy", why)


def _check_keys(value: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(value) - known)
    if unknown:
        raise _malformed(f"Unknown field {unknown[0]} in {where}")


def _read_statement(value: Any, bucket: str) -> Statement:
    if not isinstance(value, dict):
        raise _malformed("A statement must be an object")
    _check_keys(value, _KEYS, "a statement")
    if not isinstance(value.get("Sid", ""), str):
        raise _malformed("Sid must be text")
    if value.get("Effect") not in ("Allow", "Deny"):
        raise _malformed(f"Invalid effect: {value.get('Effect')}")
    if "${" in msgspec.json.encode(value).decode():
        raise _malformed("Policy variables (${...}) are not offered")
    if "NotPrincipal" in value:
        raise _malformed("NotPrincipal is not offered: allow principals, or deny by a condition")
    is_not_action, actions = _read_either(value, "Action")
    is_not_resource, resources = _read_either(value, "Resource")
    for action in actions:
        if not _ACTION.fullmatch(action):
            raise _malformed(f"Policy has invalid action: {action}")
    for resource in resources:
        if not _is_of_bucket(resource, bucket):
            raise _malformed(f"Policy has invalid resource: {resource}; it must be {arn_of(bucket)} or within it")
    return Statement(
        value["Effect"] == "Allow",
        _read_principals(value.get("Principal")),
        tuple(action.lower() for action in actions),
        is_not_action,
        tuple(resources),
        is_not_resource,
        parse_conditions(value.get("Condition", {})),
    )


def _read_either(value: Mapping[str, Any], name: str) -> tuple[bool, list[str]]:
    """(whether it is the Not form, its texts)."""
    if (name in value) == (f"Not{name}" in value):
        raise _malformed(f"A statement needs either {name} or Not{name}")
    is_not = name not in value
    found = value[f"Not{name}" if is_not else name]
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise _malformed(f"{name} must be text, or a list of texts")
    return is_not, texts


def _is_of_bucket(resource: str, bucket: str) -> bool:
    if not resource.startswith(ARN):
        return False
    name = resource.removeprefix(ARN).partition("/")[0]
    return matches(name, bucket)


def _read_principals(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, dict):
        _check_keys(value, {"AWS"}, "Principal")
        value = value.get("AWS")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise _malformed("Invalid principal in policy")
    if "*" in texts:
        return None
    for text in texts:
        if "*" in text:
            raise _malformed(f"Invalid principal in policy: {text}")
    return tuple(text.rpartition("/")[2] if text.startswith("arn:") else text for text in texts)
