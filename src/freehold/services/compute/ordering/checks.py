"""What a node says of a job, checked as far as its client can: signatures, the order's fields, hashes.

A receipt is for the order whose struct hash is the job's id; so whoever knows the id knows what was ordered, even
after a restart. With the task at hand its inputs and the number of its steps are checked too. Whether the result is
right nobody can tell from it: that takes another node (`terms.py`).

Invariant: a Standing that passed `check_standing` has a receipt that both sides signed, for no more than was ordered,
and the result and states that it commits to; its inline blobs are those that they are named after.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from freehold.protocol.errors import Corrupt, InvalidInput, MalformedMessage
from freehold.protocol.keys import is_signed_by
from freehold.protocol.merkle import row_root
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash
from freehold.services.compute.executors.outputs import matches
from freehold.services.compute.tasks import (
    FILES_LIMIT,
    Result,
    Task,
    check_path,
    decode_result,
    input_root,
    state_leaf,
)
from freehold.services.compute.terms import NO_STEPS, UNITS_PER_PRICE, Order, Receipt
from freehold.services.compute.verification.attestation.verify import QUOTE_LIMIT

Phase = Literal["queued", "running", "finished"]
PHASES = ("queued", "running", "finished")
CUT_SHORT = frozenset({"stopped", "failed", "refused"})  # ends before which a node need not have read the inputs


class WrongReceipt(Corrupt):
    """What a node shows for a job does not check; `receipt` in its details where that is signed all the same."""

    code = "wrong_receipt"
    hint = "Run the job at another node; a signed receipt can be disputed with that one's."


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a job stands. `measure` is so far, `position` its place in the queue, `steps` the SHA-256 of the state after
    each, `inline` small blobs that came out, by SHA-256; `service` says where a running service is reached.

    `delivered`: whether its files are where its task's delivery says; `read_bytes` and `written_bytes` went from and to
    storage for it; `log_bytes` are in its log. `reason`: why it did not end by itself, in a sentence.
    """

    job: Hash
    phase: Phase
    receipt: Receipt | None = None
    result: str | None = None
    steps: tuple[Hash, ...] = ()
    inline: Mapping[str, bytes] = {}
    measure: int = 0
    service: Mapping[str, Any] | None = None
    position: int = 0
    reason: str = ""
    task: Hash | None = None
    delivered: bool | None = None
    read_bytes: int = 0
    written_bytes: int = 0
    log_bytes: int = 0
    quote: bytes = b""  # of the node's hardware, where the task asks for one; nothing of it is checked here

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.phase == "finished"

    @property
    def outcome(self) -> Result | None:
        """What came out, once it is over."""
        return decode_result(self.result.encode()) if self.result is not None else None


class KeptReceipt(NamedTuple):
    """A receipt that checked, the price of its lease, and what it commits to; kept until its order has run out."""

    receipt: Receipt
    price: int
    result: bytes
    steps: tuple[Hash, ...]

    @property
    def cost(self) -> int:
        """Credits that it is paid: floor(measure x price / UNITS_PER_PRICE)."""
        return self.receipt.measure * self.price // UNITS_PER_PRICE


class Parties(NamedTuple):
    """Whose signatures a receipt needs, and where they count."""

    client: Address
    node: Address
    domain: Domain


def most_cost(most: int, price: int) -> int:
    """Credits that an order may come to, rounded up."""
    return -(-most * price // UNITS_PER_PRICE)


def parse_standing(value: Any) -> Standing:
    """The standing behind a node's answer. MalformedMessage; Corrupt where an inline blob is another."""
    try:
        receipt, phase = value.get("receipt"), value["phase"]
        if phase not in PHASES:
            raise MalformedMessage(f"a job does not stand at {phase!r}")
        result, service, reason = value.get("result"), value.get("service"), value.get("reason") or ""
        delivered, task = value.get("delivered"), value.get("task")
        if not isinstance(result, str | None) or not isinstance(service, dict | None) or not isinstance(reason, str):
            raise MalformedMessage("a job's result and reason are text, its service is an object")
        if not isinstance(delivered, bool | None):
            raise MalformedMessage("a job's files were delivered, or were not")
        return Standing(
            job=Hash(value["job"]),
            phase=phase,
            receipt=Receipt.from_json(receipt) if receipt is not None else None,
            result=result,
            steps=tuple(Hash(step) for step in value.get("steps") or ()),
            inline={name: _inline(name, text) for name, text in (value.get("inline") or {}).items()},
            measure=_number(value.get("measure")),
            service=service,
            position=_number(value.get("position")),
            reason=reason,
            task=Hash(task) if task is not None else None,
            delivered=delivered,
            read_bytes=_number(value.get("read_bytes")),
            written_bytes=_number(value.get("written_bytes")),
            log_bytes=_number(value.get("log")),
            quote=_quote(value.get("quote")),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise MalformedMessage("that does not say how a job stands") from None


def _number(value: object) -> int:
    if type(value) is int and value >= 0:
        return value
    if value is None:
        return 0
    raise MalformedMessage("what a job has taken is a number from 0 on")


def _quote(text: str | None) -> bytes:
    if text is not None and len(text) > 2 * QUOTE_LIMIT:
        raise MalformedMessage(f"a job's quote has at most {QUOTE_LIMIT} bytes")
    try:
        return base64.b64decode(text, validate=True) if text is not None else b""
    except binascii.Error:
        raise MalformedMessage("a job's quote is not in base64") from None


def _inline(name: str, text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise MalformedMessage(f"the blob {name} is not in base64") from None
    if hashlib.sha256(data).hexdigest() != name:
        raise Corrupt(f"what came as the blob {name} is another")
    return data


def check_standing(
    standing: Standing, job: Hash, parties: Parties, task: Task | None = None, order: Order | None = None
) -> None:
    """WrongReceipt unless all that is said of the job is as it must be; of one that is not over, nothing is known.

    `order`: where it is at hand, as the client signed it.
    """
    if standing.job != job:
        raise _wrong(parties, job, f"was asked for job {job} and answered for {standing.job}")
    receipt = standing.receipt
    if not standing.is_over:
        if receipt is not None:
            raise _wrong(parties, job, "shows a receipt for a job that is not over")
        return
    if receipt is None:
        return  # it gave up, and is not paid: the caller sees the reason
    check_receipt(receipt, job, parties, order)
    if reason := _contradiction(standing, receipt, task):
        raise _wrong(parties, job, reason, receipt=receipt.to_json())


def check_receipt(receipt: Receipt, job: Hash, parties: Parties, signed: Order | None = None) -> None:
    """WrongReceipt unless it is for this order, no more than ordered, and signed by both."""
    order = receipt.order()
    if receipt.node != parties.node or (order != signed and order.struct_hash() != job):
        raise _wrong(parties, job, "shows a receipt for another order")
    if receipt.measure > receipt.most:
        raise _wrong(parties, job, f"bills {receipt.measure} for an order of at most {receipt.most}")
    if order != signed and not is_signed_by(order, receipt.client_signature, parties.client, parties.domain):
        raise _wrong(parties, job, "shows a receipt for an order that this client did not sign")
    if not is_signed_by(receipt, receipt.node_signature, parties.node, parties.domain):
        raise _wrong(parties, job, "shows a receipt that it did not sign")


def _contradiction(standing: Standing, receipt: Receipt, task: Task | None) -> str:
    """What of the result, states or inputs is not what the receipt commits to; empty if all is."""
    if standing.result is None:
        return "shows a receipt without its result"
    try:
        result = decode_result(standing.result.encode())
    except MalformedMessage as error:
        return f"shows a result that is none: {error.message}"
    if result.hash() != receipt.output:
        return "shows another result than its receipt commits to"
    root = row_root([state_leaf(step.hex()) for step in standing.steps]) if standing.steps else NO_STEPS
    if root != receipt.steps:
        return "shows other states than its receipt commits to"
    if task is None:
        return ""
    if receipt.task != task.hash():
        return "shows a receipt for another task"
    if len(standing.steps) > task.steps:
        return f"shows {len(standing.steps)} states for {task.steps} steps"
    if len(standing.steps) < task.steps and (result.ended, result.status) == ("exited", 0):
        return f"says that all is done, and shows {len(standing.steps)} states for {task.steps} steps"
    if not _is_asked_for(result, task):
        return "shows files that the task did not ask for, or more of them than it may leave"
    blobs = [(one.path, one.blob.sha256) for one in task.inputs if one.blob is not None]
    is_unread = result.ended in CUT_SHORT and receipt.input == NO_STEPS
    if len(blobs) == len(task.inputs) and not is_unread and receipt.input != input_root(blobs):
        return "shows a receipt for other inputs"
    return ""


def _is_asked_for(result: Result, task: Task) -> bool:
    """Whether a task can have left these files: they may come to stand in a folder of the client's."""
    paths = {one.path for one in result.files}
    try:
        for path in paths:
            check_path(path)
    except InvalidInput:
        return False
    return (
        len(paths) == len(result.files) <= FILES_LIMIT
        and sum(one.size for one in result.files) <= task.resources.disk
        and all(matches(path, task.outputs) for path in paths)
    )


def _wrong(parties: Parties, job: Hash, what: str, **details: Any) -> WrongReceipt:
    return WrongReceipt(f"node {parties.node} {what}", node=str(parties.node), job=str(job), **details)
