"""LifecycleConfiguration between XML and the rules that `Buckets.expire` follows, with S3's validation.

Transitions answer NotImplemented: there is one storage class. What a rule says and is not known is refused, never
ignored: a filter that was overlooked would delete what it should not.
"""

from __future__ import annotations

from collections.abc import Sequence

from freehold.client.lifecycle import DAY, Rule
from freehold.gateway.wire.documents import check_tags, iso_milliseconds, parse_iso
from freehold.gateway.wire.errors import S3Error, invalid_argument
from freehold.gateway.wire.xml import Node, malformed, parse_xml
from freehold.gateway.wire.xml_writer import Writer

MOST_RULES = 1000
MOST_DAYS = 2**31 - 1
MOST_NEWER = 100
MOST_BYTES = 2**63 - 1
_ACTIONS = ("Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload")
_TRANSITIONS = ("Transition", "NoncurrentVersionTransition")


def parse_lifecycle(data: bytes) -> tuple[Rule, ...]:
    """The rules of a PutBucketLifecycleConfiguration."""
    root = parse_xml(data, "LifecycleConfiguration")
    root.check_children("Rule")
    if not 1 <= len(root.children) <= MOST_RULES:
        raise malformed(f"<LifecycleConfiguration> takes from 1 to {MOST_RULES} rules")
    rules = tuple(_read_rule(node, number) for number, node in enumerate(root.children, 1))
    if len({rule.id for rule in rules}) < len(rules):
        raise invalid_argument("ID", "", "Rule ID must be unique. Found same ID for more than one rule")
    return rules


def _read_rule(node: Node, number: int) -> Rule:
    if any(True for name in _TRANSITIONS for _ in node.all(name)):
        raise S3Error("NotImplemented", "Transitions are not offered: there is one storage class")
    node.check_children("ID", "Status", "Prefix", "Filter", *_ACTIONS)
    name = node.get_text("ID") or f"rule-{number}"
    if len(name) > 255:
        raise invalid_argument("ID", name, "ID length should not exceed allowed limit of 255")
    status = node.get_text("Status")
    if status not in ("Enabled", "Disabled"):
        raise malformed("<Status> must be Enabled or Disabled")
    prefix, tags, smallest, largest = _read_filter(node)
    days, date, marker = _read_expiration(node.get("Expiration"))
    noncurrent, newer = _read_noncurrent(node.get("NoncurrentVersionExpiration"))
    abort = _read_abort(node.get("AbortIncompleteMultipartUpload"))
    if all(node.get(action) is None for action in _ACTIONS):
        raise S3Error("InvalidRequest", "At least one action needs to be specified in a rule")
    filtered = bool(tags) or smallest is not None or largest is not None
    if filtered and abort is not None:
        message = "AbortIncompleteMultipartUpload cannot be specified with Tags, ObjectSizeGreaterThan or "
        raise S3Error("InvalidRequest", f"{message}ObjectSizeLessThan")
    if filtered and marker:
        raise S3Error("InvalidRequest", "ExpiredObjectDeleteMarker cannot be specified with Tags or sizes")
    return Rule(
        id=name,
        enabled=status == "Enabled",
        prefix=prefix,
        tags=tags,
        min_size=smallest,
        max_size=largest,
        days=days,
        date=date,
        expired_delete_marker=marker,
        noncurrent_days=noncurrent,
        newer_noncurrent=newer,
        abort_days=abort,
    )


def _read_filter(node: Node) -> tuple[str, dict[str, str], int | None, int | None]:
    """(prefix, tags, smallest, largest) of <Filter>, its <And>, or the <Prefix> of the older form."""
    found, old = node.get("Filter"), node.get_text("Prefix")
    if (found is None) == (old is None):
        raise malformed("<Rule> needs either <Filter> or <Prefix>")
    if found is None:
        return _check_prefix(old or ""), {}, None, None
    if found.get("And") is not None:
        found.check_children("And")
        found = found.get("And")
    elif len(found.children) > 1:
        raise malformed("<Filter> takes one condition, or several in <And>")
    assert found is not None
    found.check_children("Prefix", "Tag", "ObjectSizeGreaterThan", "ObjectSizeLessThan")
    pairs = [(tag.get_text("Key") or "", tag.get_text("Value") or "") for tag in found.all("Tag")]
    tags = check_tags(pairs, max(10, len(pairs)))
    smallest = found.get_integer("ObjectSizeGreaterThan", 0, MOST_BYTES)
    largest = found.get_integer("ObjectSizeLessThan", 1, MOST_BYTES)
    if smallest is not None and largest is not None and smallest >= largest:
        message = "The value for ObjectSizeGreaterThan must be less than the value for ObjectSizeLessThan"
        raise S3Error("InvalidRequest", message)
    return _check_prefix(found.get_text("Prefix") or ""), tags, smallest, largest


def _check_prefix(prefix: str) -> str:
    if len(prefix.encode()) > 1024:
        raise S3Error("InvalidRequest", "The maximum size of a prefix is 1024")
    return prefix


def _read_expiration(node: Node | None) -> tuple[int | None, int | None, bool]:
    """(days, date, expired delete markers)."""
    if node is None:
        return None, None, False
    node.check_children("Days", "Date", "ExpiredObjectDeleteMarker")
    days = _read_days(node, "Days", "'Days' for Expiration action must be a positive integer")
    text = node.get_text("Date")
    date = None
    if text is not None:
        date = parse_iso(text)
        if date is None or date < 0:
            raise malformed("<Date> must be a time in ISO 8601 format")
        if date % DAY:
            raise invalid_argument("Date", text, "'Date' must be at midnight GMT")
    marker = (node.get_text("ExpiredObjectDeleteMarker") or "false").strip()
    if marker not in ("true", "false"):
        raise malformed("<ExpiredObjectDeleteMarker> must be true or false")
    if (days is not None) + (date is not None) + (marker == "true") != 1:
        raise malformed("<Expiration> takes one of <Days>, <Date> and <ExpiredObjectDeleteMarker>")
    return days, date, marker == "true"


def _read_noncurrent(node: Node | None) -> tuple[int | None, int | None]:
    """(days, how many newer noncurrent versions stay)."""
    if node is None:
        return None, None
    node.check_children("NoncurrentDays", "NewerNoncurrentVersions")
    message = "'NoncurrentDays' for NoncurrentVersionExpiration action must be a positive integer"
    days = _read_days(node, "NoncurrentDays", message)
    if days is None:
        raise malformed("<NoncurrentVersionExpiration> needs <NoncurrentDays>")
    return days, node.get_integer("NewerNoncurrentVersions", 1, MOST_NEWER)


def _read_abort(node: Node | None) -> int | None:
    if node is None:
        return None
    node.check_children("DaysAfterInitiation")
    message = "'DaysAfterInitiation' for AbortIncompleteMultipartUpload action must be a positive integer"
    days = _read_days(node, "DaysAfterInitiation", message)
    if days is None:
        raise malformed("<AbortIncompleteMultipartUpload> needs <DaysAfterInitiation>")
    return days


def _read_days(node: Node, name: str, message: str) -> int | None:
    text = node.get_text(name)
    if text is not None and (text.strip() == "0" or text.strip().startswith("-")):
        raise invalid_argument(name, text.strip(), message)
    return node.get_integer(name, 1, MOST_DAYS)


def write_lifecycle(rules: Sequence[Rule]) -> bytes:
    """The rules as GetBucketLifecycleConfiguration answers them; parsed again they are the same."""
    writer = Writer("LifecycleConfiguration")
    for rule in rules:
        with writer.inside("Rule"):
            writer.leaf("ID", rule.id)
            with writer.inside("Filter"):
                _write_filter(writer, rule)
            writer.leaf("Status", "Enabled" if rule.enabled else "Disabled")
            _write_actions(writer, rule)
    return writer.done()


def _write_filter(writer: Writer, rule: Rule) -> None:
    count = bool(rule.prefix) + len(rule.tags) + (rule.min_size is not None) + (rule.max_size is not None)

    def conditions() -> None:
        if rule.prefix or count == 0:
            writer.leaf("Prefix", rule.prefix)
        for key, value in rule.tags.items():
            with writer.inside("Tag"):
                writer.leaf("Key", key)
                writer.leaf("Value", value)
        writer.optional("ObjectSizeGreaterThan", rule.min_size)
        writer.optional("ObjectSizeLessThan", rule.max_size)

    if count > 1:
        with writer.inside("And"):
            conditions()
    else:
        conditions()


def _write_actions(writer: Writer, rule: Rule) -> None:
    if rule.days is not None or rule.date is not None or rule.expired_delete_marker:
        with writer.inside("Expiration"):
            writer.optional("Days", rule.days)
            if rule.date is not None:
                writer.leaf("Date", iso_milliseconds(rule.date))
            if rule.expired_delete_marker:
                writer.leaf("ExpiredObjectDeleteMarker", True)
    if rule.noncurrent_days is not None:
        with writer.inside("NoncurrentVersionExpiration"):
            writer.leaf("NoncurrentDays", rule.noncurrent_days)
            writer.optional("NewerNoncurrentVersions", rule.newer_noncurrent)
    if rule.abort_days is not None:
        with writer.inside("AbortIncompleteMultipartUpload"):
            writer.leaf("DaysAfterInitiation", rule.abort_days)
