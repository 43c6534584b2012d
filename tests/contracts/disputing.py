"""Challengers and their cases: reports with one thing wrong, posted over the real contracts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import boa
from eth_utils import keccak

from freehold.protocol.disputes import Contradiction, commitment_of
from freehold.protocol.merkle import ACCOUNTS, SumNode, depth_of
from freehold.protocol.messages import Report
from freehold.protocol.state import AccountState
from freehold.protocol.typed import fields_of
from freehold.protocol.units import Address, Hash
from tests.contracts.world import TOKEN, Account, World, hexed, key_of, tuple_of

SALT = Hash(keccak(text="salt"))
NOBODY = "0x" + "00" * 20
_EMPTY = {"address": Address(bytes(20)), "bytes32": Hash(bytes(32))}
NO_REPORT = Report(**{f.name: 0 if f.bits else _EMPTY[f.solidity] for f in fields_of(Report)})


def accounts_of(*tokens: int, credits: int = 0) -> list[Account]:
    """Accounts that earned these tokens, and the same credits each."""
    return [Account(key_of(f"account {i}").address, amount, credits, credits) for i, amount in enumerate(tokens)]


def states_of(accounts: Sequence[Account]) -> list[AccountState]:
    """Accounts as the protocol's state has them."""
    return [
        AccountState(
            index=i,
            account=a.address,
            tokens_earned=a.tokens_earned,
            credits_earned=a.credits_earned,
            credits_spent=a.credits_spent,
        )
        for i, a in enumerate(accounts)
    ]


def levels_over(
    leaves: Sequence[SumNode], lie: tuple[int, int, int] | None = None, positions: int = 0
) -> list[list[SumNode]]:
    """All levels of the tree, bottom up. `lie` is (height, position, tokens): that node states so many tokens more."""
    width = 2 ** depth_of(max(len(leaves), positions))
    levels = [[*leaves, *[ACCOUNTS.empty] * (width - len(leaves))]]
    while True:
        if lie and lie[0] == len(levels) - 1:
            node = levels[-1][lie[1]]
            levels[-1][lie[1]] = SumNode(node.hash, (node.sums[0] + lie[2], *node.sums[1:]))
        if len(levels[-1]) == 1:
            return levels
        below = levels[-1]
        levels.append([ACCOUNTS.join(below[i], below[i + 1]) for i in range(0, len(below), 2)])


def root_fields(levels: Sequence[Sequence[SumNode]], accounts: int) -> dict[str, Any]:
    """The fields of a report that commits to these levels."""
    ((root,),) = levels[-1:]
    names = ("tokens_earned", "credits_earned", "credits_spent")
    return {
        "accounts_root": Hash(root.hash + b"\x00"),
        "accounts": accounts,
        **dict(zip(names, root.sums, strict=True)),
    }


def mine(blocks: int = 1) -> None:
    """The next block."""
    boa.env.time_travel(blocks=blocks, block_delta=1)


def wait(seconds: int) -> None:
    """Let chain time pass; blocks come with it."""
    boa.env.time_travel(seconds=seconds)


class Challenger:
    """Someone with tokens for bonds."""

    def __init__(self, world: World, tokens: int = 1_000 * TOKEN) -> None:
        self.world = world
        self.address: str = boa.env.generate_address()
        world.fund(self.address, tokens)
        world.token.approve(world.disputes, 2**256 - 1, sender=self.address)

    @property
    def balance(self) -> int:
        return int(self.world.token.balanceOf(self.address))

    def commit(self, report: Report, found: Contradiction | None, salt: Hash = SALT) -> None:
        assert found is not None
        commitment = commitment_of(Address(self.address), found, salt)
        self.world.disputes.commit(report.epoch, report.struct_hash(), commitment, sender=self.address)

    def reveal(self, before: Report, report: Report, found: Contradiction | None, salt: Hash = SALT) -> None:
        assert found is not None
        self.world.disputes.reveal(tuple_of(before), tuple_of(report), *found, salt, sender=self.address)

    def challenge(self, before: Report, report: Report, found: Contradiction | None) -> None:
        """Commit, and reveal in the next block."""
        self.commit(report, found)
        mine()
        self.reveal(before, report, found)

    def demand(self, report: Report, kind: int, position: int) -> None:
        self.world.disputes.demand(tuple_of(report), kind, position, sender=self.address)

    def hold(self, report: Report) -> Any:
        return self.world.disputes.hold_of(report.struct_hash(), self.address)


def bond_members(world: World) -> None:
    """Every member puts up the bond that its office asks for."""
    for member in world.members:
        world.token.approve(world.membership, world.settings.member_bond, sender=world.treasury)
        world.membership.bond(hexed(member.address), world.settings.member_bond, sender=world.treasury)
