"""What the contracts should do, in plain Python: the mirror that the stateful test holds beside them."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from tests.contracts.world import TOKEN, Settings


@dataclass
class Posted:
    """A report that waits, or is active."""

    epoch: int
    earned: dict[int, int]
    subsidy: int
    revenue: int
    activates_at: int


@dataclass
class Position:
    """A bond and its thaw."""

    bond: int = 0
    thawing: int = 0
    ends: int = 0


@dataclass
class Model:
    """Money by owner's name; every method returns what the call should return, or None where it should revert."""

    settings: Settings
    now: int
    balances: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    burned: int = 0
    paid_in: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    spent_on_credits: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    prices: tuple[int, int] = (0, 0)
    priced_at: int = 0
    earned: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    credits_earned: int = 0
    credits_spent: int = 0
    pending: deque[Posted] = field(default_factory=deque)
    active: Posted | None = None
    subsidy_minted: int = 0
    revenue_minted: int = 0
    paid: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    operators: dict[int, str] = field(default_factory=dict)
    retired: set[int] = field(default_factory=set)
    positions: dict[tuple[str, int], Position] = field(default_factory=lambda: defaultdict(Position))

    def __post_init__(self) -> None:
        self.balances["treasury"] = self.settings.initial_supply
        self.prices = (self.settings.initial_price,) * 2
        self.priced_at = self.now

    @property
    def active_epoch(self) -> int:
        return self.active.epoch if self.active else 0

    @property
    def posted_epoch(self) -> int:
        return self.pending[-1].epoch if self.pending else self.active_epoch

    @property
    def supply(self) -> int:
        return self.settings.initial_supply + self.subsidy_minted + self.revenue_minted - self.burned

    @property
    def burned_for_credits(self) -> int:
        return sum(self.spent_on_credits.values())

    def schedule(self, epoch: int) -> int:
        return self.settings.initial_subsidy >> (epoch - 1) // self.settings.halving_epochs

    def move(self, sender: str, receiver: str, amount: int) -> None:
        self.balances[sender] -= amount
        self.balances[receiver] += amount

    def buy(self, client: str, tokens: int, min_credits: int) -> int | None:
        """Credits bought."""
        credits = tokens * min(self.prices) // TOKEN
        is_stale = self.now > self.priced_at + self.settings.max_price_age
        if is_stale or credits == 0 or credits < min_credits or tokens > self.balances[client]:
            return None
        self.balances[client] -= tokens
        self.burned += tokens
        self.paid_in[client] += credits
        self.spent_on_credits[client] += tokens
        return credits

    def revenue_left(self) -> int:
        """Tokens burned for credits that no report has claimed as revenue."""
        return self.burned_for_credits - self.revenue_minted - sum(report.revenue for report in self.pending)

    def post(self, shares: dict[int, int], subsidy: int, revenue: int, price: int) -> None:
        """A report within its budget; `shares` are what each account's total grows by."""
        for account, share in shares.items():
            self.earned[account] += share
        activates_at = self.now + self.settings.dispute_window
        self.pending.append(Posted(self.posted_epoch + 1, dict(self.earned), subsidy, revenue, activates_at))
        self.prices = (price, self.prices[0])
        self.priced_at = self.now

    def activate(self) -> int:
        """The active epoch."""
        while self.pending and self.pending[0].activates_at <= self.now:
            self.active = self.pending.popleft()
            self.subsidy_minted += self.active.subsidy
            self.revenue_minted += self.active.revenue
            self.balances["ledger"] += self.active.subsidy + self.active.revenue
        return self.active_epoch

    def claim(self, account: int, payout: str) -> int | None:
        """Tokens paid."""
        self.activate()
        if self.active is None:
            return None
        amount = max(0, self.active.earned[account] - self.paid[account])
        self.paid[account] += amount
        self.move("ledger", payout, amount)
        return amount

    def is_operator(self, operator: str, node: int) -> bool:
        return self.operators.get(node) == operator and node not in self.retired

    def stake(self, operator: str, node: int, amount: int) -> int | None:
        """The bond."""
        if amount == 0 or not self.is_operator(operator, node) or amount > self.balances[operator]:
            return None
        self.move(operator, "staking", amount)
        self.positions[operator, node].bond += amount
        return self.positions[operator, node].bond

    def thaw(self, operator: str, node: int, amount: int) -> int | None:
        """The epoch whose activation ends it."""
        position = self.positions[operator, node]
        if amount == 0 or amount > position.bond:
            return None
        position.bond -= amount
        position.thawing += amount
        position.ends = self.active_epoch + self.settings.thaw_epochs
        return position.ends

    def withdraw(self, operator: str, node: int) -> int | None:
        """Tokens paid out."""
        position = self.positions[operator, node]
        if position.thawing == 0 or self.active_epoch < position.ends:
            return None
        amount, position.thawing, position.ends = position.thawing, 0, 0
        self.move("staking", operator, amount)
        return amount

    def slash(self, operator: str, node: int, amount: int) -> int:
        """Tokens burned."""
        position = self.positions[operator, node]
        from_bond = min(amount, position.bond)
        from_thawing = min(amount - from_bond, position.thawing)
        position.bond -= from_bond
        position.thawing -= from_thawing
        position.ends = position.ends if position.thawing else 0
        self.balances["staking"] -= from_bond + from_thawing
        self.burned += from_bond + from_thawing
        return from_bond + from_thawing
