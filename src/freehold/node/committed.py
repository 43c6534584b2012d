"""What the quorum has committed to, as a node takes it over: the open epoch, the last report, and its own rows.

f+1 members must name the same epoch, beacon and report, so at least one honest one does; the report must bear Q
signatures; and every row must prove itself against the report's state root. That no row was left out rests on the f+1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from freehold.market.quorum import Quorum
from freehold.protocol.certificates import SIGNATURE_BYTES, faults, quorum
from freehold.protocol.errors import Corrupt, FreeholdError, MalformedMessage, Unavailable, WrongSignature
from freehold.protocol.keys import recover
from freehold.protocol.merkle import row_root, verify_row
from freehold.protocol.messages import Report
from freehold.protocol.parameters import Parameters
from freehold.protocol.state import LeaseState, LockState, TableRoot
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, Message, canonical_json
from freehold.protocol.units import ZERO_HASH, Address, Hash, Signature
from freehold.services.judging import JUDGES


class OpenEpoch(NamedTuple):
    """The epoch that gathers evidence; `report` is that of the one before, None at the very first.

    `anchor_time` (chain time, seconds) is when the epoch ends at the earliest; None while f+1 members do not say.
    `parameters` are those in force for the epoch.
    """

    epoch: int
    beacon: Hash | None
    report: Report | None
    anchor_time: int | None
    parameters: Parameters


class NodeView(NamedTuple):
    """A node's own rows in the state after `epoch`: its leases, the locks on them, each service's rows."""

    epoch: int
    leases: Mapping[Hash, LeaseState]
    locks: Sequence[LockState]
    services: Mapping[str, Table[Any]]


async def read_open(quorum_: Quorum) -> OpenEpoch:
    """What f+1 members say is open. Unavailable while they do not come together."""
    answers = await quorum_.ask("/v1/open")
    quorum_.membership.learn(value for _, value in answers)
    groups: defaultdict[bytes, list[Any]] = defaultdict(list)
    for _, value in answers:
        if isinstance(value, dict) and type(value.get("epoch")) is int:
            said = (value.get(name) for name in ("beacon", "report", "parameters"))
            key = canonical_json([value["epoch"], *said])
            groups[key].append(value)
    needed = faults(len(quorum_.members)) + 1
    agreed = [group for group in groups.values() if len(group) >= needed]
    if not agreed:
        raise Unavailable(f"fewer than {needed} members name the same open epoch", answers=len(answers))
    group = max(agreed, key=lambda values: (values[0]["epoch"], values[0].get("beacon") is not None))
    failure: FreeholdError = Unavailable("no member shows the last report with its signatures")
    for value in group:
        try:
            members = quorum_.membership.of(value["epoch"] - 1)
            return _parse_open(value, members, quorum_.domain)._replace(anchor_time=_anchor_time(group, needed))
        except (MalformedMessage, WrongSignature) as error:
            failure = error
    raise failure


def _anchor_time(group: Sequence[dict[str, Any]], needed: int) -> int | None:
    counts = Counter(value.get("anchor_time") for value in group if type(value.get("anchor_time")) is int)
    return next((time for time, count in counts.items() if count >= needed), None)


def _parse_open(value: dict[str, Any], members: Sequence[Address], domain: Domain) -> OpenEpoch:
    epoch, beacon, report = value["epoch"], value.get("beacon"), None
    if value.get("report") is not None:
        report = Report.from_json(value["report"])
        check_report(report, value.get("signers"), value.get("signatures"), members, domain)
    if (report.epoch if report else 0) != epoch - 1:
        raise MalformedMessage(f"epoch {epoch} is said to be open, without the report of the one before")
    parameters = Parameters.from_json(value.get("parameters"))
    return OpenEpoch(epoch, Hash(beacon) if isinstance(beacon, str) else None, report, None, parameters)


def check_report(report: Report, signers: Any, signatures: Any, members: Sequence[Address], domain: Domain) -> None:
    """WrongSignature unless exactly Q members signed the report, each once, in the members' order."""
    if type(signers) is not int or not 0 <= signers < 1 << len(members) or not isinstance(signatures, str):
        raise MalformedMessage("a report comes with its signers and their signatures")
    try:
        data = bytes.fromhex(signatures.removeprefix("0x"))
    except ValueError:
        raise MalformedMessage("the report's signatures are not hexadecimal") from None
    chosen = [member for i, member in enumerate(members) if signers >> i & 1]
    if len(chosen) != quorum(len(members)) or len(data) != SIGNATURE_BYTES * len(chosen):
        raise WrongSignature(f"a report needs the signatures of exactly {quorum(len(members))} members")
    digest = report.digest(domain)
    for i, member in enumerate(chosen):
        if recover(digest, Signature(data[SIGNATURE_BYTES * i : SIGNATURE_BYTES * (i + 1)])) != member:
            raise WrongSignature(f"the report's signature {i} is not {member}'s")


async def read_rows(quorum_: Quorum, report: Report, node: Address) -> NodeView:
    """The rows of a node, or of a device, in the state that the report commits to, each proven."""
    return parse_rows(await quorum_.agree(f"/v1/state/{report.epoch}/nodes/{node}"), report)


def parse_rows(value: Any, report: Report) -> NodeView:
    """The rows of a member's answer. Corrupt where one does not stand in the state that the report commits to."""
    try:
        roots = [TableRoot.from_json(table) for table in value["tables"]]
        rows = {str(name): list(entries) for name, entries in value["rows"].items()}
    except (KeyError, TypeError, AttributeError):
        raise MalformedMessage("an answer that holds no rows of a node") from None
    if row_root([root.row_hash() for root in roots]) != report.state_root:
        raise Corrupt(f"the tables are not those of the state that report {report.epoch} commits to")
    tables = {root.name: root for root in roots}
    leases: list[LeaseState] = _proven(rows, tables, "leases", LeaseState)
    locks: list[LockState] = _proven(rows, tables, "locks", LockState)
    services = {
        name: Table.of(judge.state_kind, _proven(rows, tables, f"service.{name}", judge.state_kind))
        for name, judge in JUDGES.items()
    }
    return NodeView(report.epoch, {row.lease: row for row in leases}, locks, services)


def empty_view() -> NodeView:
    """Before the first report there is nothing."""
    return NodeView(0, {}, (), {name: Table.of(judge.state_kind) for name, judge in JUDGES.items()})


def _proven(rows: dict[str, list[Any]], tables: dict[str, TableRoot], name: str, kind: type[Message]) -> list[Any]:
    root = tables.get(name, TableRoot(name=name, count=0, root=ZERO_HASH))
    proven = []
    for entry in rows.get(name, []):
        try:
            row, index = kind.from_json(entry["row"]), entry["index"]
            proof = [Hash(sibling) for sibling in entry["proof"]]
        except (KeyError, TypeError):
            raise MalformedMessage(f"a row of {name} without its proof") from None
        if type(index) is not int or not verify_row(root.root, root.count, index, row.row_hash(), proof):
            raise Corrupt(f"a row of {name} does not stand in the committed state")
        proven.append(row)
    return proven
