"""Sensing's judge on columns says what the plain loops say, and what its rules promise."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from freehold.protocol.lookup import Finder, Lookup, distinct_cells, sort_order
from freehold.protocol.service import Context
from freehold.protocol.state import DeviceChange
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import GOOD, KNOWN
from freehold.services.sensing.score import SensingJudge
from freehold.services.sensing.terms import (
    REVOKED_DEVICE,
    UNCOUNTED,
    WRONG_FLEET_ROOT,
    DeviceState,
)
from tests.protocol.world import DOMAIN, PARAMETERS
from tests.services.sensing import plain
from tests.services.sensing_world import (
    DEVICES,
    context_of,
    enrolments,
    fleet_of,
    listed,
    report,
    rows_of,
    state_of,
)

JUDGE = SensingJudge()


def compare(context: Context, rows: dict[str, Table[Any]]) -> list[str]:
    """The judge's reasons, having checked that the plain loops agree on everything."""
    duties = JUDGE.obligations(context)
    assert list(duties) == plain.obligations(context)
    verdicts = JUDGE.judge(duties, rows, context)
    expected = plain.judge(plain.obligations(context), rows, context)
    assert list(verdicts) == expected
    state, contributions, _ = JUDGE.fold(rows, verdicts, context)
    assert (list(state), list(contributions)) == plain.fold(rows, expected, context)
    return [v.reason for v in verdicts]


@pytest.mark.parametrize("seed", range(25))
def test_columns_and_plain_loops_agree(seed: int) -> None:
    draw = random.Random(seed)
    owners = [Address(bytes(19) + bytes([draw.randint(1, 3)])) for _ in DEVICES]
    lists = [listed(DEVICES[:5], owners[:5]), listed(DEVICES[5:9], owners[5:9]), listed(DEVICES[8:], owners[8:])]
    bond = draw.choice([0, 2, 5, 100]) * PARAMETERS.device_bond
    fleets = [fleet_of(i, rows, bond) for i, rows in enumerate(lists)]
    known = draw.sample(range(2), draw.randint(0, 2))
    state = state_of([row for i in known for row in enrolments(fleets[i], lists[i])])
    changes = [
        DeviceChange(
            fleet=row.fleet,
            index=row.index,
            device=row.device,
            owner=Address(bytes(20)) if draw.random() < 0.5 else Address(bytes(19) + b"\x09"),
        )
        for row in state
        if draw.random() < 0.3
    ]
    context = context_of(fleets[: draw.randint(1, 3)], state, changes)
    reports = []
    for device in draw.choices(DEVICES, k=draw.randint(0, 16)):
        row = report(device, context, reading=keccak(bytes([draw.randint(0, 2)])))
        fault = draw.random()
        if fault < 0.1:
            row = report(device, context, epoch=context.epoch - 1)
        elif fault < 0.2:
            row = report(device, context, beacon=keccak(b"another"))
        elif fault < 0.4:
            row = msgspec.structs.replace(row, device_signature=DEVICES[0].sign(row, DOMAIN))
        reports.append(row)
    nodes = [Address(bytes(19) + bytes([0x20 + i])) for i in range(2)]
    unknown = [i for i in range(3) if i not in known]
    shown = [row for node in nodes for i in unknown for row in enrolments(fleets[i], lists[i], node)]
    if shown and draw.random() < 0.3:
        shown.pop(draw.randrange(len(shown)))
    draw.shuffle(shown)
    compare(context, {name: table.distinct() for name, table in rows_of(reports, shown).items()})


def test_a_fleet_comes_in_whole_or_not_at_all() -> None:
    rows = listed(DEVICES[:4])
    fleet = fleet_of(1, rows)
    shown, context = enrolments(fleet, rows), context_of([fleet], [])
    assert compare(context, rows_of([], shown)) == [GOOD] * 4
    assert set(compare(context, rows_of([], shown[:-1]))) == {WRONG_FLEET_ROOT}
    moved = msgspec.structs.replace(shown[0], owner=Address(bytes(19) + b"\x07"))
    assert set(compare(context, rows_of([], [moved, *shown[1:]]))) == {WRONG_FLEET_ROOT}


def test_what_others_show_of_a_fleet_does_not_keep_it_out() -> None:
    rows, stranger = listed(DEVICES[:4]), Address(bytes(19) + b"\x66")
    fleet = fleet_of(1, rows)
    junk = enrolments(fleet, listed(DEVICES[4:5]), stranger)
    context = context_of([fleet], [])
    assert compare(context, rows_of([], [*junk, *enrolments(fleet, rows)])) == [WRONG_FLEET_ROOT, *[GOOD] * 4]
    twice = [*enrolments(fleet, rows, stranger), *enrolments(fleet, rows)]
    assert compare(context, rows_of([], twice)) == [*[GOOD] * 4, *[KNOWN] * 4]


def test_a_copied_list_takes_no_device_from_the_fleet_that_was_registered_first() -> None:
    rows = listed(DEVICES[:3])
    for own, copied in ((1, 2), (2, 1)):
        first, copy = fleet_of(own, rows), fleet_of(copied, rows)
        shown = [*enrolments(copy, rows), *enrolments(first, rows)]
        assert compare(context_of([first, copy], []), rows_of([], shown)) == [*[KNOWN] * 3, *[GOOD] * 3]


def test_the_bond_covers_so_many_devices_and_no_more() -> None:
    rows = listed(DEVICES[:4])
    for devices, bond in ((2, 3 * PARAMETERS.device_bond - 1), (3, 3 * PARAMETERS.device_bond)):
        fleet = fleet_of(1, rows, bond)
        context = context_of([fleet], state_of(enrolments(fleet, rows)))
        said = compare(context, rows_of([report(device, context) for device in DEVICES[:4]], []))
        assert (said.count(GOOD), said.count(UNCOUNTED)) == (devices, 4 - devices)


def test_a_revoked_device_is_owed_nothing_and_never_comes_back() -> None:
    rows = listed(DEVICES[:2])
    fleet = fleet_of(1, rows)
    change = DeviceChange(fleet=fleet.fleet, index=0, device=rows[0].device, owner=Address(bytes(20)))
    enrolled = context_of([fleet], state_of(enrolments(fleet, rows)), [change])
    assert [duty.device for duty in JUDGE.obligations(enrolled)] == [rows[1].device]
    fresh = context_of([fleet], [], [change])
    assert compare(fresh, rows_of([], enrolments(fleet, rows))) == [REVOKED_DEVICE, GOOD]


def test_addresses_that_share_a_prefix_are_told_apart() -> None:
    cells = [b"\x05" * 8 + bytes([i]) * 12 for i in (3, 1, 2)] + [b"\x04" * 20, b"\x06" * 20]
    table = Table.of(DeviceState, [row(Address(cell)) for cell in cells])
    order = sort_order(table.column("device"))
    assert order is not None
    ordered = table.take(order)
    assert [r.device for r in ordered] == sorted(cells)
    lookup = Lookup(ordered.column("device"))
    assert lookup.find(table.column("device")).tolist() == [sorted(cells).index(cell) for cell in cells]
    stranger = Table.of(DeviceState, [row(Address(b"\x05" * 8 + b"\x09" * 12)), row(Address(b"\x07" * 20))])
    assert lookup.find(stranger.column("device")).tolist() == [-1, -1]
    finder = Finder(Table.concat(DeviceState, [table, table]).column("device"))
    assert [finder.find(cell) for cell in cells] == [[i, i + len(cells)] for i in range(len(cells))]
    assert finder.find(b"\x05" * 20) == []
    values, codes = distinct_cells(table.column("device"))
    assert [values[code] for code in codes] == cells


def row(device: Address) -> DeviceState:
    return DeviceState(device=device, fleet=Hash(bytes(32)), index=0, owner=device, place=0, since=0)
