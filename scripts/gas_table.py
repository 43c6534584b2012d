"""Measures what each transaction costs and writes `docs/gas.md`.

    python scripts/gas_table.py             write the table
    python scripts/gas_table.py --check     exit 1 if a figure is over its ceiling, or 1 % away from the written one

A figure is the gas of a whole transaction: 21,000, its calldata, and its execution with every account and slot cold
(`gas.py`). Disputes and fleets have their rows in `gas_disputes.py`.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import boa  # noqa: E402

from freehold.protocol.merkle import ACCOUNTS, SumNode  # noqa: E402
from freehold.protocol.units import Hash  # noqa: E402
from scripts.gas import Row, measure  # noqa: E402
from scripts.gas_disputes import dispute_rows, fleet_rows  # noqa: E402
from tests.contracts.slashes import shown, slashes_of  # noqa: E402
from tests.contracts.test_collector import CLIENT, NODE, OPERATOR, Freezing  # noqa: E402
from tests.contracts.world import (  # noqa: E402
    NEVER,
    TOKEN,
    Account,
    Settings,
    World,
    hexed,
    key_of,
    leaf_of,
    tuple_of,
)

TABLE = ROOT / "docs" / "gas.md"
TOLERANCE = 0.01
HEAD = """# Gas

Written by `scripts/gas_table.py` from measured transactions; do not edit. Each figure is a whole transaction: the
21,000 every one pays, its calldata, and its execution with every account and storage slot cold. *First* means that it
fills storage that was empty before: the dearest case.

| transaction | case | gas | ceiling |
|---|---|---:|---:|
"""


def submission_rows() -> list[Row]:
    """Reports by committees of several sizes, and again once the ring has been round."""
    rows = []
    for count in (1, 4, 7, 31):
        world = World(Settings(members=count))
        quorum = world.oracle.quorum(1)
        case = f"{count} member{'s' * (count > 1)}, {quorum} signature{'s' * (quorum > 1)}"
        rows.append(Row("Oracle.submit", f"{case}, first", submit(world), 220_000 if count == 4 else 0))
        if count == 4:
            for _ in range(64):
                world.post(subsidy=1)
                world.activate()
            rows.append(Row("Oracle.submit", f"{case}, later", submit(world), 220_000))
    return rows


def submit(world: World) -> int:
    """The next report, with amounts and counts of full width."""
    world.buy(boa.env.generate_address(), 12_345_678_901_234_567_890)
    report = world.report(
        subsidy=world.emission.schedule(world.ledger.posted_epoch() + 1) * 9 // 10,
        revenue=9_876_543_210_987_654_321,
        credits_spent=12_345_678_901_234_567_890 * (1 + world.ledger.posted_epoch() // 64),
        credits_earned=12_345_678_901_234_567_890 * (1 + world.ledger.posted_epoch() // 64),
        accounts=999_999,
        anchor_block=20_123_456,
        price=1_987_654_321_098_765_432,
    )
    return measure(world.oracle, "submit", tuple_of(report), *world.sign(report, range(world.oracle.quorum(1))))


def claim_rows() -> list[Row]:
    """Claims against trees of several sizes: nobody builds a million leaves to walk one path of them."""
    rows = []
    for depth, size in ((0, "1 account"), (10, "1,000 accounts"), (20, "1,000,000 accounts")):
        ceiling = 135_000 if depth == 20 else 0
        world = World()
        first = Claimant(world, depth, 100 * TOKEN + 987_654_321)
        rows.append(Row("Ledger.claim", f"{size}, first, to a new holder", first.claim(), ceiling))
        rows.append(Row("Ledger.claim", f"{size}, nothing left", first.claim()))
        second = Claimant(world, depth, 300 * TOKEN + 123_456_789)
        rows.append(Row("Ledger.claim", f"{size}, later", second.claim(), ceiling))
    claimant = Claimant(World(), 20, 100 * TOKEN, is_active=False)
    rows.append(Row("Ledger.claim", "1,000,000 accounts, first, and activates the report", claimant.claim()))
    return rows


class Claimant:
    """An account in a tree of which only its own path exists, posted and activated."""

    def __init__(self, world: World, depth: int, earned: int, is_active: bool = True) -> None:
        rng = random.Random(depth)
        self.world, self.index = world, (1 << depth) * 7 // 10
        self.account = Account(key_of("claimant").address, earned, 5 * TOKEN + 1, 7 * TOKEN + 1)
        world.buy(boa.env.generate_address(), 10_000 * TOKEN)
        siblings = [SumNode(rng.randbytes(31), (TOKEN + i, TOKEN - i, TOKEN + 3 * i)) for i in range(depth)]
        root = ACCOUNTS.climb(leaf_of(self.index, self.account), self.index, siblings)
        self.proof = b"".join(ACCOUNTS.pack(node) for node in siblings)
        world.post(
            accounts_root=Hash(root.hash + b"\x00"),
            accounts=1 << depth,
            tokens_earned=root.sums[0],
            credits_earned=root.sums[1],
            credits_spent=root.sums[2],
        )
        if is_active:
            world.activate()
        else:
            boa.env.time_travel(seconds=world.settings.dispute_window)

    def claim(self) -> int:
        address = hexed(self.account.address)
        return measure(self.world.ledger, "claim", self.index, address, *self.account.sums, self.proof)


def epoch_rows(world: World) -> list[Row]:
    """What keeps an epoch going besides its report."""
    rows = []
    for case in ("first", "later"):
        world.buy(boa.env.generate_address(), TOKEN)
        world.post(subsidy=TOKEN, revenue=TOKEN // 2)
        boa.env.time_travel(seconds=world.settings.dispute_window)
        rows.append(Row("Ledger.activate", f"1 epoch, {case}", measure(world.ledger, "activate")))
    one, other = world.report(), world.report(manifest=Hash(b"\x07" * 32))
    signatures = [world.sign(report, [0])[1] for report in (one, other)]
    gas = measure(world.oracle, "record_equivocation", tuple_of(one), signatures[0], tuple_of(other), signatures[1])
    rows.append(Row("Oracle.record_equivocation", "", gas))
    return [*rows, *revocation_rows(world)]


def revocation_rows(world: World) -> list[Row]:
    """Holds, and what they are for."""
    before = world.post()
    world.post()
    disputes = world.disputes.address
    rows = [Row("Ledger.hold", "", measure(world.ledger, "hold", before.epoch, sender=disputes))]
    rows.append(Row("Ledger.release", "", measure(world.ledger, "release", before.epoch, sender=disputes)))
    arguments = (before.epoch + 1, tuple_of(before))
    rows.append(Row("Oracle.revoke", "1 report", measure(world.oracle, "revoke", *arguments, sender=disputes)))
    for _ in range(62):
        world.post()
    gas = measure(world.oracle, "revoke", *arguments, sender=disputes)
    return [*rows, Row("Oracle.revoke", "62 reports", gas)]


def member_rows(world: World) -> list[Row]:
    """Members' bonds, and a set of seven."""
    rows = []
    keys = [key_of(f"gas member {i}") for i in range(7)]
    world.token.approve(world.membership, NEVER, sender=world.treasury)
    bond = world.settings.member_bond
    for key in keys:
        gas = measure(world.membership, "bond", hexed(key.address), bond, sender=world.treasury)
    rows.append(Row("Members.bond", "first", gas))
    arguments = ([hexed(key.address) for key in keys], 3)
    gas = measure(world.membership, "schedule", *arguments, sender=world.governor)
    rows.append(Row("Members.schedule", "7 members", gas))
    extra = hexed(keys[0].address)
    world.membership.bond(extra, bond, sender=world.treasury)
    rows.append(Row("Members.thaw", "in office", measure(world.membership, "thaw", bond, sender=extra)))
    arguments = (world.settings.parameters * 60, 3)
    gas = measure(world.oracle, "schedule_parameters", *arguments, sender=world.governor)
    return [*rows, Row("Oracle.schedule_parameters", f"{len(arguments[0]):,} bytes", gas)]


def frozen_rows(world: World) -> list[Row]:
    """Silence, and the way out of it."""
    client = hexed(CLIENT.address)
    world.fund(client, 100 * TOKEN)
    world.token.approve(world.credits, 100 * TOKEN, sender=client)
    world.credits.buy(100 * TOKEN, 0, NEVER, sender=client)
    world.register(hexed(OPERATOR.address), NODE)
    network = Freezing(world)
    network.settle()
    boa.env.time_travel(seconds=world.settings.freeze_lengths * world.settings.epoch_length + 1)
    rows = [Row("Ledger.freeze", "", measure(world.ledger, "freeze"))]
    for case, credits in (("first", 40), ("later", 50)):
        given = network.arguments(credits * TOKEN)
        rows.append(
            Row("Collector.collect", f"a small state, {case}", measure(world.collector, "collect", *given.values()))
        )
    pause = measure(world.ledger, "pause", 100, sender=world.guardian)
    return [*rows, Row("Ledger.pause", "", pause)]


def party_rows(world: World) -> list[Row]:
    """What operators and clients send."""
    rows = []
    client = key_of("gas client")
    address = hexed(client.address)
    world.fund(address, 1_000 * TOKEN)
    boa.env.set_balance(address, 10**18)
    world.token.approve(world.credits, 500 * TOKEN, sender=address)
    for case in ("first", "later"):
        rows.append(Row("Credits.buy", case, measure(world.credits, "buy", 7 * TOKEN, TOKEN, NEVER, sender=address)))
    other = key_of("gas permit")
    world.fund(hexed(other.address), 1_000 * TOKEN)
    permit = world.sign_permit(other, world.credits, 7 * TOKEN)
    arguments = (7 * TOKEN, TOKEN, NEVER, *permit)
    gas = measure(world.credits, "buy_with_permit", *arguments, sender=hexed(other.address))
    rows.append(Row("Credits.buy_with_permit", "first", gas))

    node, operator, endpoint = key_of("gas node"), address, "https://node-17.operator.example.org:28967"
    payout = boa.env.generate_address()
    signature = world.sign_registration(operator, node, endpoint, payout)
    arguments = (hexed(node.address), endpoint, payout, NEVER, signature)
    rows.append(Row("Registry.register", "first", measure(world.registry, "register", *arguments, sender=operator)))
    arguments = (hexed(node.address), endpoint)
    gas = measure(world.registry, "update_endpoint", *arguments, sender=operator)
    rows.append(Row("Registry.update_endpoint", "", gas))
    world.token.approve(world.staking, 500 * TOKEN, sender=operator)
    at = hexed(node.address)
    for case in ("first", "later"):
        rows.append(Row("Staking.stake", case, measure(world.staking, "stake", at, 100 * TOKEN, sender=operator)))
    rows.append(Row("Staking.thaw", "", measure(world.staking, "thaw", at, 100 * TOKEN, sender=operator)))
    for _ in range(world.settings.thaw_epochs):
        world.post()
        world.activate()
    rows.append(Row("Staking.withdraw", "", measure(world.staking, "withdraw", at, sender=operator)))
    lost = slashes_of(16, operator, at)
    report = world.post(slashes_root=lost.root)
    world.activate()
    rows.append(Row("Slasher.slash", "one of 16", measure(world.slashing, "slash", *shown(report, lost, 9))))
    return [*rows, Row("Registry.retire", "", measure(world.registry, "retire", at, sender=operator))]


def measure_all() -> list[Row]:
    """Every row of the table, in an EVM of its own."""
    with boa.swap_env(boa.Env()):
        return [
            *submission_rows(),
            *claim_rows(),
            *epoch_rows(World()),
            *member_rows(World()),
            *frozen_rows(World()),
            *party_rows(World()),
            *dispute_rows(),
            *fleet_rows(World()),
        ]


def render(rows: list[Row]) -> str:
    lines = (f"| {r.transaction} | {r.case} | {r.gas:,} | {f'{r.ceiling:,}' if r.ceiling else ''} |" for r in rows)
    return HEAD + "\n".join(lines) + "\n"


def find_problems(rows: list[Row], written: str) -> list[str]:
    """Rows over their ceiling, and rows that the written table lacks or has with another figure."""
    found = re.findall(r"^\| (\S+) \| (.*?) \| ([\d,]+) \|", written, re.MULTILINE)
    known = {(name, case.strip()): int(gas.replace(",", "")) for name, case, gas in found}
    problems = [f"{r.transaction}, {r.case}: {r.gas} over {r.ceiling}" for r in rows if 0 < r.ceiling < r.gas]
    for row in rows:
        before = known.pop((row.transaction, row.case), 0)
        if abs(row.gas - before) > TOLERANCE * row.gas:
            problems.append(f"{row.transaction}, {row.case}: {row.gas}, but the table says {before}")
    return problems + [f"{' '.join(key)}: in the table, but no longer measured" for key in known]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the contracts' gas.")
    parser.add_argument("--check", action="store_true", help="compare with docs/gas.md, write nothing")
    arguments = parser.parse_args()
    rows = measure_all()
    if not arguments.check:
        TABLE.write_text(render(rows))
    problems = find_problems(rows, TABLE.read_text())
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
