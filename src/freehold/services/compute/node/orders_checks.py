"""What an order must be before a node takes it: cheap checks first, each with a reason that says what would do.

who      signed by the lease's client, for this lease, of this task
when     its receipt can still come to count, and the lease goes on
what     an executor that works here and is the one that the task names, resources that the node offers, the
         operator's rules
how      what the task names is here, or comes along
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from freehold.market.constraints import Constraint
from freehold.protocol.errors import BodyTooLarge, DeadlineExpired, InvalidInput, MalformedMessage, Refused
from freehold.protocol.keys import check_signed_by
from freehold.protocol.typed import Domain
from freehold.protocol.units import MEASURE_LIMIT, Address, Hash
from freehold.services.compute.bidding import BidRequest, get_order_party
from freehold.services.compute.node.settings import Settings
from freehold.services.compute.tasks import Input, Task, decode_task, memory_of, runner_of
from freehold.services.compute.terms import KEPT_EPOCHS, Order
from freehold.services.compute.verification.attestation.policy import PROPERTY
from freehold.services.seam import Standing

WAIT_LIMIT = 60  # seconds that one request may wait
INLINE_LIMIT = 3 * 2**20  # bytes of blobs that come along with an order
LEAST_EPOCHS = 2  # from the committed epoch to an order's last: the open one may close before its receipt is out


class Asked(NamedTuple):
    """A request to run something, as it came: checked by itself, not yet against the node."""

    order: Order
    task: Task
    text: bytes
    inline: Mapping[str, bytes]
    access: Any
    wait: float


def parse_asked(body: Mapping[str, Any], standing: Standing, domain: Domain) -> Asked:
    """The order and its task. MalformedMessage, InvalidInput, WrongSignature."""
    unknown = set(body) - {"order", "task", "blobs", "access", "wait"}
    if unknown:
        raise MalformedMessage(f"an order does not come with {sorted(unknown)[0]!r}")
    order, text = Order.from_json(body.get("order")), body.get("task")
    if not isinstance(text, str):
        raise MalformedMessage("the task is text: its canonical JSON")
    if order.lease != standing.lease.struct_hash():
        raise InvalidInput("the order is for another lease")
    check_signed_by(order, order.client_signature, standing.lease.client, domain)
    data = text.encode()
    task = decode_task(data)
    if task.hash() != order.task:
        raise InvalidInput(f"the order is for the task {order.task}, and this is {task.hash()}")
    check_folders(task.inputs)
    return Asked(
        order, task, data, parse_inline(body.get("blobs")), body.get("access"), parse_wait(body.get("wait", 0))
    )


def parse_wait(value: Any) -> float:
    """Seconds to wait. MalformedMessage."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= WAIT_LIMIT:
        raise MalformedMessage(f"'wait' is a number of seconds up to {WAIT_LIMIT}")
    return float(value)


def parse_inline(value: Any) -> Mapping[str, bytes]:
    """The blobs that come along. MalformedMessage, InvalidInput where one is not what its name says."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedMessage("'blobs' has bytes in base64 by their SHA-256")
    found: dict[str, bytes] = {}
    for name, text in value.items():
        try:
            body = base64.b64decode(text, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise MalformedMessage(f"the blob {name[:80]!r} is not in base64") from None
        if hashlib.sha256(body).hexdigest() != name:
            raise InvalidInput(f"the blob {name[:80]!r} has other bytes than its name says")
        found[name] = body
    if sum(map(len, found.values())) > INLINE_LIMIT:
        raise BodyTooLarge(f"blobs of more than {INLINE_LIMIT} bytes are pushed beforehand", limit=INLINE_LIMIT)
    return found


def check_folders(inputs: Sequence[Input]) -> None:
    """InvalidInput where one input's path is a folder of another's."""
    paths = {one.path for one in inputs}
    for path in paths:
        parts = path.split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in paths:
                raise InvalidInput(f"the input {path!r} would be below another input")


def check_when(order: Order, standing: Standing, now: int) -> None:
    """InvalidInput, DeadlineExpired unless a receipt can still count, and the state would keep it so long."""
    least, furthest = standing.epoch + LEAST_EPOCHS, standing.epoch + KEPT_EPOCHS
    if not least <= order.until <= furthest:
        raise InvalidInput(
            f"an order's last epoch lies from {least} to {furthest} now, not at {order.until}",
            epoch=standing.epoch, least=least, furthest=furthest,
        )  # fmt: skip
    if standing.lease.deadline <= now:
        raise DeadlineExpired(f"the lease's deadline passed {now - standing.lease.deadline} s ago")


def check_most(order: Order) -> None:
    """InvalidInput unless it allows some measure, and no more than a measure can be."""
    if not 0 < order.most < MEASURE_LIMIT:
        raise InvalidInput("an order allows a measure from 1 to 2**63 - 1")


def check_resources(task: Task, settings: Settings, properties: Mapping[str, object]) -> None:
    """Refused, saying what there is, where the task asks for more than the node offers."""
    wanted = task.resources
    offered = {name: getattr(settings, name) for name in ("processors", "memory", "disk")}
    if task.service is None:
        offered["seconds"] = settings.seconds
    for name, most in offered.items():
        if getattr(wanted, name) > most:
            raise Refused(f"the task asks for {name} {getattr(wanted, name)}, this node offers {most}", **{name: most})
    if (memory := memory_of(task)) > settings.memory:
        raise Refused(
            f"the task asks for {memory} bytes of memory with its files, which are in memory too, this node offers "
            f"{settings.memory}", memory=settings.memory,
        )  # fmt: skip
    if task.attested and PROPERTY not in properties:
        raise Refused("the task asks for an attestation, and this node has no hardware that gives one")
    gpus = properties.get("gpu.count", 0)
    if wanted.gpus and (not isinstance(gpus, int) or wanted.gpus > gpus):
        raise Refused(f"the task asks for {wanted.gpus} GPUs, this node has {gpus}")
    own = properties.get("gpu.memory", 0)
    if wanted.gpu_memory and (not isinstance(own, int) or wanted.gpu_memory > own):
        raise Refused(f"the task asks for {wanted.gpu_memory} bytes of GPU memory, this node has {own}")
    if wanted.gpu_model and wanted.gpu_model != properties.get("gpu.model"):
        raise Refused(f"the task asks for the GPU {wanted.gpu_model!r}, this node has {properties.get('gpu.model')!r}")
    if task.network and not settings.network:
        raise Refused("the task asks for the network, and this node's operator does not grant it")


def check_rules(asked: Asked, client: Address, rules: Constraint) -> None:
    """Refused where the operator's rules are false of the order. What an order does not say was asked at the bid."""
    task = asked.task
    request = BidRequest(
        client=str(client), executor=task.executor, kind=task.kind, engine=task.engine, resources=task.resources,
        network=task.network, steps=task.steps, most=asked.order.most,
    )  # fmt: skip
    properties = get_order_party(request).properties
    if rules.test(properties) is False:
        raise Refused(f"the node's operator does not take such orders: {rules.evaluate(properties).reason}")


def needed_of(task: Task) -> dict[str, int | None]:
    """The blobs that a task needs by SHA-256, with the size that it says they have."""
    needed: dict[str, int | None] = {
        blob.sha256: blob.size
        for blob in (task.program, task.stdin, *(one.blob for one in task.inputs))
        if blob is not None
    }
    runner = runner_of(task)
    if runner is not None:
        if len(runner) != 64 or set(runner) - set("0123456789abcdef"):
            raise InvalidInput("a runner is named by its SHA-256, in lower-case hexadecimal")
        needed.setdefault(runner, None)
    return needed


def parse_key(text: str, what: str = "an order") -> Hash:
    """An id in a path or query. MalformedMessage."""
    if not text.startswith("0x"):
        raise MalformedMessage(f"the id of {what} is 0x and 64 hexadecimal digits")
    if text != text.lower():
        raise MalformedMessage(f"the id of {what} is written in lower case")  # what is signed has one spelling
    return Hash(text)
