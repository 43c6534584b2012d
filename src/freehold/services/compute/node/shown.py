"""What the accused of a case show to a referee, checked: the receipt is the one that the case is about, and task,
inputs and state are those that it commits to.

Pure but for the files that a run is given. Invariant: what `check_shown` and `Fetched` let through hashes to what the
committed state names; whoever shows something else has shown nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from shutil import copyfile, rmtree
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from freehold.net.server import Pace
from freehold.protocol.errors import Corrupt, FreeholdError, MalformedMessage, Unavailable
from freehold.protocol.keys import check_signed_by, recover
from freehold.protocol.messages import Request
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH, Address, Hash, Signature
from freehold.services.compute.node.blobs import in_thread
from freehold.services.compute.node.orders_running import Given, Produced
from freehold.services.compute.tasks import (
    DETERMINISTIC_ENDS,
    Result,
    Task,
    decode_result,
    decode_task,
    input_root,
    pinned_engine,
    runner_of,
    state_leaf,
)
from freehold.services.compute.terms import EXACT, Receipt, WorkState

BLOB_LIMIT = 2**40  # bytes of a blob that is fetched; what there is room for is less
CLAIMING = DETERMINISTIC_ENDS | {"disk"}  # of a WebAssembly module: how it ends is the same anywhere

FetchBlob = Callable[[Address, str, Path], Awaitable[None]]


class Shown(NamedTuple):
    """What one of the accused has shown, checked against its receipt."""

    task: Task
    inputs: tuple[tuple[str, str], ...]
    state: str | None
    receipt: Receipt
    result: Result
    is_stopped: bool = False  # by its client, as its signed request says


class _Answer(msgspec.Struct, frozen=True):
    task: str
    inputs: tuple[tuple[str, str], ...]
    receipt: dict[str, Any]
    result: str
    state: str | None = None
    stop: tuple[str, str, str] | None = None


def check_shown(value: Any, seat: WorkState, node: Address, domain: Domain) -> Shown:
    """What a node says of the case. MalformedMessage, WrongSignature; Corrupt where it is about something else."""
    try:
        answer = msgspec.convert(value, _Answer)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"that shows nothing of a case: {error}") from None
    order, output = (
        (seat.first_order, seat.first_output) if node == seat.first else (seat.second_order, seat.second_output)
    )
    receipt = Receipt.from_json(answer.receipt)
    check_signed_by(receipt, receipt.node_signature, node, domain)
    task, result = decode_task(answer.task.encode()), decode_result(answer.result.encode())
    said = receipt.claim() if seat.kind == EXACT else receipt.output
    given = Hash(state_leaf(_digest(answer.state))) if answer.state is not None else receipt.input
    facts = {
        "receipt": receipt.node == node and receipt.order().struct_hash() == order,
        "task": task.hash() == seat.task == receipt.task,
        "inputs": input_root([(path, _digest(sha256)) for path, sha256 in answer.inputs]) == receipt.input,
        # The whole task by EXACT is run on what each claims; `said` says what that is.
        "state": answer.state is None if seat.kind == EXACT and not seat.step else given == seat.input,
        "result": result.hash() == receipt.output and (bool(seat.step) or said == output),
        "paths": [path for path, _ in sorted(answer.inputs)] == sorted(one.path for one in task.inputs)
        or (not answer.inputs and claims_nothing(task, result)),  # it was cut short before they were read
    }
    for name, is_right in facts.items():
        if not is_right:
            raise Corrupt(f"node {node} shows another {name} than the case is about")
    is_stopped = answer.stop is not None and was_stopped(*answer.stop, receipt, domain)
    return Shown(task, answer.inputs, answer.state, receipt, result, is_stopped)


def was_stopped(path: str, request: str, signature: str, receipt: Receipt, domain: Domain) -> bool:
    """Whether this is the client's own request to this node to end this order: whenever it was sent."""
    order = receipt.order()
    try:
        nonce, deadline = request.split(" ")
        asked = Request(
            method="DELETE", path=path, body=ZERO_HASH, recipient=receipt.node, nonce=Hash(nonce),
            deadline=int(deadline),
        )  # fmt: skip
        client = recover(order.digest(domain), order.client_signature)
        is_signed = recover(asked.digest(domain), Signature(signature)) == client
    except (FreeholdError, ValueError, OverflowError):
        return False
    return is_signed and path.endswith(f"/orders/{order.struct_hash()}")


def _digest(text: str) -> str:
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise MalformedMessage("a blob is named by its SHA-256, in lower-case hexadecimal")
    return text


def claims_nothing(task: Task, result: Result) -> bool:
    """Whether a run ended in a way that says nothing of what the task's result is."""
    return result.ended not in CLAIMING if task.executor == "wasm" else result.ended != "exited"


def choose_inputs(agreed: Hash, shown: Mapping[Address, Shown]) -> Shown | None:
    """What a whole task is run on by EXACT: the inputs that it names, or those that both accused have read (`agreed`,
    else zero). None where each has read its own, and both claim a result: an object of a bucket may have changed."""
    first = next(iter(shown.values()))
    named = [(one.path, one.blob.sha256) for one in first.task.inputs if one.blob is not None]
    if len(named) == len(first.task.inputs):
        return first._replace(inputs=tuple(named))
    if agreed != ZERO_HASH:
        return first
    claiming = [one for one in shown.values() if not claims_nothing(one.task, one.result)]
    return claiming[0] if len(claiming) == 1 and len(shown) == 2 else None


def is_sure(task: Task, own: Result, measure: int, shown: Sequence[Shown]) -> bool:
    """Whether a difference from one's own result, which took `measure`, proves a receipt wrong, or cut short by its
    node."""
    if task.executor != "wasm" or claims_nothing(task, own) or not pinned_engine(task):
        return False
    if len(shown) < 2 and own.ended == "fuel":  # nobody says how much the other order allowed
        return False
    if any(one.is_stopped and claims_nothing(task, one.result) for one in shown):
        return False
    if len({one.receipt.most for one in shown}) == 1:
        return True
    # What ran out of less fuel may be as right as what did not.
    return own.ended != "fuel" and all(one.result.ended != "fuel" or one.receipt.most >= measure for one in shown)


class Fetched:
    """The files of one case, as a context: fetched from whoever shows them, each once. `limit`: bytes of a run's
    inputs, in which one of them may stand often."""

    def __init__(self, folder: Path, nodes: Sequence[Address], fetch: FetchBlob, limit: int) -> None:
        self._folder, self._nodes, self._fetch, self._limit = folder, nodes, fetch, limit

    async def __aenter__(self) -> Self:
        await in_thread(rmtree, self._folder, True)
        await in_thread(lambda: self._folder.mkdir(parents=True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await in_thread(rmtree, self._folder, True)

    async def get(self, sha256: str, nodes: Sequence[Address] = ()) -> Path:
        """A blob as a file. Unavailable where none of the nodes (any that has shown something) gives it."""
        target = self._folder / _digest(sha256)
        failure: FreeholdError = Unavailable(f"nobody shows the blob {sha256}")
        for node in nodes or self._nodes:
            if target.exists():
                break
            try:
                await self._fetch(node, sha256, target)
            except FreeholdError as error:
                failure = error
        if not target.exists():
            raise Unavailable(f"nobody shows the blob {sha256}: {failure.message}")
        return target

    async def give(self, shown: Shown, step: int) -> Given:
        """What a run of the task, or of the one step, starts from."""
        task = shown.task
        program = await self.get(task.program.sha256) if task.program is not None else None
        engine = await self.get(runner) if (runner := runner_of(task)) is not None else None
        before = shown.state if step > 1 else task.stdin.sha256 if task.stdin is not None else None
        stdin = await self.get(before) if before is not None else None
        inputs = [(path, await self.get(sha256)) for path, sha256 in shown.inputs]
        if await in_thread(lambda: sum(source.stat().st_size for _, source in inputs)) > self._limit:
            raise Unavailable(f"the inputs have more than the {self._limit} bytes that are free here")

        async def write_inputs(folder: Path) -> None:
            for path, source in inputs:
                await in_thread(_place, source, folder / path)

        return Given(program, engine, stdin, write_inputs)


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    copyfile(source, target)


async def write_checked(pieces: AsyncIterator[bytes], target: Path, sha256: str, limit: int) -> None:
    """Write what arrives to `target`, which is there whole or not at all. Corrupt where it is another blob,
    DeadlineExpired where it comes too slowly: other cases wait for this one."""
    part, digest, size = target.with_suffix(".part"), hashlib.sha256(), 0
    with part.open("wb") as file:
        async with Pace() as pace:
            async for piece in pieces:
                size += len(piece)
                pace.count(len(piece))
                if size > limit:
                    raise Corrupt(f"blob {sha256} has more than {limit} bytes")
                digest.update(piece)
                await in_thread(file.write, piece)
    if digest.hexdigest() != sha256:
        raise Corrupt(f"another blob than {sha256} was shown", sha256=sha256)
    part.rename(target)


def read_produced(produced: Produced) -> dict[str, bytes]:
    """All that came out of a run, by SHA-256."""
    bodies = produced.bodies()
    for one in produced.files:
        if one.body is None:
            with one.open() as file:
                bodies[one.listed.sha256] = file.read()
    return bodies
