"""What every service's judge must satisfy, whatever it judges.

A service hands in a `Case`: a judge, an epoch in which its nodes owe something, and rows that answer all of it. The
checks are plain functions over a case, so that a new service needs one case and gets them all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from freehold.protocol.service import Context, Judge
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message, fields_of
from freehold.protocol.units import MEASURE_LIMIT, ZERO_HASH, Address, Hash, Signature
from freehold.protocol.verdicts import GOOD, SILENT, SLEPT

Rows = Mapping[str, Table[Any]]


class Case(NamedTuple):
    """`rows` answer every obligation of `context`, and are all good; `grown` is the same epoch with more held."""

    judge: Judge
    context: Context
    rows: Rows
    grown: Context


def nothing(judge: Judge) -> dict[str, Table[Any]]:
    """No rows of any kind."""
    return {kind: Table.of(message) for kind, message in judge.kinds.items()}


def judged(case: Case, rows: Rows) -> Table[Any]:
    return case.judge.judge(case.judge.obligations(case.context), rows, case.context)


def random_message(kind: type[Message], draw: random.Random) -> Message:
    """Any value of the type: what a hostile sender may put into a batch."""
    values: dict[str, Any] = {}
    for field in fields_of(kind):
        count = draw.randint(0, 3) if field.many else 1
        items = [_random_value(field, draw) for _ in range(count)]
        values[field.name] = tuple(items) if field.many else items[0]
    return kind(**values)


def _random_value(field: Any, draw: random.Random) -> Any:
    if field.item is not None:
        return random_message(field.item, draw)
    if field.bits:
        return draw.choice([0, 1, 2**field.bits - 1, draw.getrandbits(field.bits)])
    if field.solidity == "string":
        return draw.choice(["", "x", "é" * 5])
    fixed: dict[str, Callable[[bytes], Any]] = {"address": Address, "bytes32": Hash, "signature": Signature}
    if field.solidity in fixed:
        size = {"address": 20, "bytes32": 32, "signature": 65}[field.solidity]
        return fixed[field.solidity](draw.randbytes(size))
    return draw.randbytes(draw.choice([0, 1, 39, 78, 4096]))


def spoiled(rows: Rows, draw: random.Random) -> Iterator[dict[str, Table[Any]]]:
    """The rows with one field of one row changed at random, again and again."""
    for kind, table in rows.items():
        for at, row in enumerate(table):
            other = random_message(table.kind, draw)
            name = draw.choice([field.name for field in fields_of(table.kind)])
            bad = msgspec.structs.replace(row, **{name: getattr(other, name)})
            yield {**rows, kind: Table.of(table.kind, [*table.rows[:at], bad, *table.rows[at + 1 :]])}


def check_names(case: Case) -> None:
    """Kinds carry the service's name; sender fields are addresses of rows."""
    judge = case.judge
    assert all(kind.startswith(f"{judge.name}.") for kind in judge.kinds)
    for kind, name in judge.sender_fields.items():
        assert {f.name: f.solidity for f in fields_of(judge.kinds[kind])}[name] == "address"
    assert judge.units_per_price > 0


def check_tables(case: Case) -> None:
    """Everything that a bundle keeps has one spelling."""
    obligations = case.judge.obligations(case.context)
    verdicts = judged(case, case.rows)
    state, contributions, _ = case.judge.fold(case.rows, verdicts, case.context)
    assert obligations.kind is case.judge.obligation_kind
    assert state.kind is case.judge.state_kind
    for table in (obligations, verdicts, state, contributions, *case.rows.values()):
        again = Table.decode(table.kind, table.encode())
        assert again == table
        assert again.root == table.root


def check_pure(case: Case) -> None:
    """The same arguments give the same answers, in whatever order the state's rows and leases are kept."""
    first, second = judged(case, case.rows), judged(case, case.rows)
    assert first == second
    assert case.judge.fold(case.rows, first, case.context) == case.judge.fold(case.rows, second, case.context)
    turned = case.context._replace(
        leases=dict(reversed(list(case.context.leases.items()))),
        state=Table.of(case.context.state.kind, reversed(case.context.state.rows)),
    )
    assert case.judge.obligations(turned) == case.judge.obligations(case.context)


def check_answers_count(case: Case) -> None:
    """Good answers are good, one verdict for each obligation at the least, and they are paid for."""
    obligations, verdicts = case.judge.obligations(case.context), judged(case, case.rows)
    assert len(obligations) > 0
    assert [v.reason for v in verdicts.rows[: len(obligations)]] == [GOOD] * len(obligations)
    assert [v.subject for v in verdicts.rows[: len(obligations)]] == list(obligations.row_hashes)
    assert {v.epoch for v in verdicts} == {case.context.epoch}
    _, contributions, _ = case.judge.fold(case.rows, verdicts, case.context)
    assert any(c.measure for c in contributions)
    for contribution in contributions:
        assert contribution.lease in case.context.leases or contribution.lease == ZERO_HASH
        assert contribution.service == case.judge.name
        assert 0 <= contribution.measure < MEASURE_LIMIT


def check_silence(case: Case) -> None:
    """Silence is a verdict on every obligation; it pays nothing and loses no state."""
    rows = nothing(case.judge)
    verdicts = judged(case, rows)
    assert len(verdicts) == len(case.judge.obligations(case.context))
    assert {v.reason for v in verdicts} <= {SILENT, SLEPT}
    state, contributions, _ = case.judge.fold(rows, verdicts, case.context)
    assert not any(c.measure for c in contributions)
    assert case.judge.holdings(state) == case.judge.holdings(case.context.state)


def check_bad_rows(case: Case, seed: int) -> None:
    """A changed or a random row never raises, and is never worth more than the good ones; each has its verdict."""
    draw = random.Random(seed)
    _, good, _ = case.judge.fold(case.rows, judged(case, case.rows), case.context)
    most = {(c.lease, c.account): c.measure for c in good}
    trash = {k: Table.of(m, [random_message(m, draw) for _ in range(4)]) for k, m in case.judge.kinds.items()}
    both = {k: Table.of(m, [*case.rows[k], *trash[k]]) for k, m in case.judge.kinds.items()}
    for rows in (trash, both, *spoiled(case.rows, draw)):
        verdicts = judged(case, rows)
        _, contributions, _ = case.judge.fold(rows, verdicts, case.context)
        assert all(c.measure <= most.get((c.lease, c.account), 0) for c in contributions)
    said = judged(case, trash)
    assert len(said) >= sum(len(table) for table in trash.values())
    assert GOOD not in {v.reason for v in said}


def check_work_is_bounded(case: Case) -> None:
    """What a node owes does not grow with what it holds; what it must hold does."""
    assert len(case.judge.obligations(case.grown)) == len(case.judge.obligations(case.context))
    before, after = case.judge.holdings(case.context.state), case.judge.holdings(case.grown.state)
    assert all(after[node] > before[node] for node in before)


CHECKS: dict[str, Callable[[Case], None]] = {
    "names": check_names,
    "tables": check_tables,
    "pure": check_pure,
    "answers count": check_answers_count,
    "silence": check_silence,
    "bounded work": check_work_is_bounded,
}
