"""What the contracts should do, in plain Python: the mirror that the stateful test holds beside them."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from tests.contracts.world import TOKEN, Settings


@dataclass
class Posted:
    """A report that waits, or is active; epoch 0 is the deployment. `counted`: all it counts of what was collected."""

    epoch: int
    posted_at: int
    price: int
    earned: dict[int, int] = field(default_factory=dict)
    counted: dict[int, int] = field(default_factory=dict)
    credits_spent: int = 0
    subsidy: int = 0
    revenue: int = 0
    holds: int = 0


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
    attempts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    highest: int = 0
    subsidy_minted: int = 0
    revenue_minted: int = 0
    paid: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    operators: dict[int, str] = field(default_factory=dict)
    retired: set[int] = field(default_factory=set)
    positions: dict[tuple[str, int], Position] = field(default_factory=lambda: defaultdict(Position))
    bonds: dict[int, Position] = field(default_factory=lambda: defaultdict(Position))
    sets: list[tuple[int, tuple[int, ...]]] = field(default_factory=lambda: [(0, (0, 1, 2, 3))])
    # Silence, pauses, the way out
    frozen_at: int = 0
    quiet_from: int = 0
    lengths: int = 0
    paused_until: int = 0
    pause_from: int = 0
    collected: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    collected_on: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    settled_on: dict[int, tuple[int, int]] = field(default_factory=lambda: defaultdict(lambda: (0, 0)))
    # The rate of claims
    level: int = 0
    budget: int = 0
    refilled_at: int = 0
    taken: dict[int, tuple[int, int]] = field(default_factory=lambda: defaultdict(lambda: (0, 0)))

    def __post_init__(self) -> None:
        self.balances["treasury"] = self.settings.initial_supply
        self.prices = (self.settings.initial_price,) * 2
        self.quiet_from = self.priced_at = self.now
        self.active = Posted(0, self.now, self.settings.initial_price)

    @property
    def active_epoch(self) -> int:
        return self.active.epoch

    @property
    def last(self) -> Posted:
        """The report posted last, or the deployment."""
        return self.pending[-1] if self.pending else self.active

    @property
    def posted_epoch(self) -> int:
        return self.last.epoch

    @property
    def is_paused(self) -> bool:
        return self.now < self.paused_until

    @property
    def nominal_epoch(self) -> int:
        now_frozen = (self.now - self.frozen_at) // self.settings.epoch_length if self.frozen_at else 0
        return self.active_epoch + self.lengths + now_frozen

    @property
    def uncounted(self) -> dict[int, int]:
        """What each account collected that no posted report has."""
        return {account: total - self.last.counted.get(account, 0) for account, total in self.collected.items()}

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
        """A report within its budget; `shares` are what each account's total grows by, beside what it collected."""
        self.end_freeze()
        for account, share in [*shares.items(), *self.uncounted.items()]:
            self.earned[account] += share
        kept = {"earned": dict(self.earned), "counted": dict(self.collected), "credits_spent": self.credits_spent}
        self.pending.append(
            Posted(self.posted_epoch + 1, self.now, price, subsidy=subsidy, revenue=revenue, **kept)  # type: ignore[arg-type]
        )
        self.highest = max(self.highest, self.posted_epoch)
        self.prices = (price, self.prices[0])
        self.priced_at = self.now

    def end_freeze(self) -> None:
        """What any report of the quorum does."""
        if self.frozen_at:
            self.lengths += (self.now - self.frozen_at) // self.settings.epoch_length
            self.frozen_at, self.quiet_from = 0, self.now

    def resume(self) -> bool:
        """A report that counts another chain of collections; whether that is taken as a sign of life."""
        if not self.frozen_at:
            return False
        self.end_freeze()
        self.attempts[self.posted_epoch + 1] += 1
        return True

    def revoke(self, epoch: int) -> int | None:
        """How many reports are taken back."""
        if not self.active_epoch < epoch <= self.posted_epoch:
            return None
        count = self.posted_epoch - epoch + 1
        for _ in range(count):
            self.attempts[self.pending.pop().epoch] += 1
        before = self.last
        self.earned = defaultdict(int, before.earned)
        self.credits_spent = before.credits_spent
        self.prices, self.priced_at = (before.price,) * 2, before.posted_at
        if not self.frozen_at:
            self.quiet_from = self.now
        return count

    def is_open(self, report: Posted) -> bool:
        return self.now < report.posted_at + self.settings.dispute_window

    def hold(self, epoch: int) -> int | None:
        """How many holds the report has then."""
        report = next((one for one in self.pending if one.epoch == epoch), None)
        if report is None or self.frozen_at:
            return None
        if not (self.is_open(report) or report.holds or self.is_paused):
            return None
        report.holds += 1
        return report.holds

    def release(self, epoch: int) -> None:
        for report in self.pending:
            if report.epoch == epoch:
                report.holds = max(0, report.holds - 1)

    def is_due(self, report: Posted) -> bool:
        is_void = self.frozen_at > 0 and self.now >= self.frozen_at + self.settings.hold_seconds
        return not self.is_open(report) and not self.is_paused and (not report.holds or is_void)

    def activate(self) -> int:
        """The active epoch."""
        while self.pending and self.is_due(self.pending[0]):
            average = sum(self.earned.values()) // self.posted_epoch
            self.active = self.pending.popleft()
            minted = self.active.subsidy + self.active.revenue
            self.subsidy_minted += self.active.subsidy
            self.revenue_minted += self.active.revenue
            self.balances["ledger"] += minted
            self.widen(max(self.schedule(self.active_epoch), minted, average))
        return self.active_epoch

    def refill(self) -> None:
        gained = self.budget * (self.now - self.refilled_at) // self.settings.epoch_length
        self.level = min(self.level + gained, self.budget * self.settings.claim_epochs)
        if gained or not self.budget:
            self.refilled_at = self.now

    def widen(self, wanted: int) -> None:
        self.refill()
        before, self.budget = self.budget, max(wanted, self.budget - self.budget // 64)
        capacity = self.budget * self.settings.claim_epochs
        self.level = min(capacity, self.level + max(0, capacity - before * self.settings.claim_epochs))

    def claim(self, account: int, payout: str) -> int | None:
        """Tokens paid."""
        if self.is_paused:
            return None
        self.activate()
        if not self.active_epoch:
            return None
        wanted = self.active.earned[account] + self.collected_on[self.active_epoch][account] - self.paid[account]
        if wanted <= 0:
            return 0
        self.refill()
        window, taken = self.taken[account]
        now = self.now // self.settings.epoch_length
        taken = taken if window == now else 0
        ceiling = max(self.budget, self.budget * self.settings.claim_epochs // 4)
        amount = min(wanted, self.level, max(0, ceiling - taken))
        if amount:
            self.taken[account] = (now, taken + amount)
        self.level -= amount
        self.paid[account] += amount
        self.move("ledger", payout, amount)
        return amount

    def freeze(self) -> int | None:
        """When it froze."""
        silent_from = max(self.last.posted_at, self.quiet_from)
        if self.frozen_at or self.now <= silent_from + self.settings.freeze_lengths * self.settings.epoch_length:
            return None
        self.frozen_at = self.now
        return self.now

    def pause(self, seconds: int) -> int | None:
        """When it ends."""
        if not 0 < seconds <= self.settings.pause_limit or self.now < self.pause_from:
            return None
        self.paused_until = self.now + seconds
        self.pause_from = self.paused_until + seconds
        return self.paused_until

    def unpause(self) -> int | None:
        """Now."""
        if not self.is_paused:
            return None
        lasted = self.now - (2 * self.paused_until - self.pause_from)
        self.paused_until, self.pause_from = self.now, self.now + lasted
        return self.now

    def collect(self, account: int, payout: str, due: int, left: int, basis: int) -> int | None:
        """Tokens paid for a voucher worth `due` of a client with so much left, by the active state."""
        credits_before, released_before = self.settled_on[self.active_epoch]
        left, basis = left - credits_before, basis - released_before
        credits = min(max(0, due - credits_before), left)
        if not self.frozen_at or self.is_paused or self.pending or not self.active_epoch or not credits:
            return None
        released = basis if credits == left else basis * credits // left
        tokens = released * (1_000_000 - self.settings.tau) // 1_000_000
        if not tokens or self.revenue_minted + tokens > self.burned_for_credits:
            return None
        self.settled_on[self.active_epoch] = (credits_before + credits, released_before + released)
        self.collected[account] += tokens
        self.collected_on[self.active_epoch][account] += tokens
        self.paid[account] += tokens
        self.revenue_minted += tokens
        self.balances[payout] += tokens
        return tokens

    def set_at(self, epoch: int) -> tuple[int, ...]:
        """The members of an epoch, by their numbers."""
        return next(members for start, members in reversed(self.sets) if start <= epoch)

    def schedule_set(self, members: tuple[int, ...], epoch: int) -> bool:
        """Whether the governor may."""
        start = self.sets[-1][0]
        too_soon = epoch < self.highest + 1 + self.settings.notice_epochs
        unbonded = any(self.bonds[one].bond < self.settings.member_bond for one in members)
        if too_soon or epoch < start or unbonded:
            return False
        self.sets = [*(self.sets[:-1] if epoch == start else self.sets), (epoch, members)]
        return True

    def bond(self, payer: str, member: int, amount: int) -> int | None:
        """The bond."""
        if not amount or amount > self.balances[payer]:
            return None
        self.move(payer, "membership", amount)
        self.bonds[member].bond += amount
        return self.bonds[member].bond

    def thaw_bond(self, member: int, amount: int) -> int | None:
        """The nominal epoch that ends it."""
        position = self.bonds[member]
        if not amount or amount > position.bond:
            return None
        first = self.set_at(self.active_epoch + 1)
        later = [members for start, members in self.sets if start > self.active_epoch + 1]
        is_accountable = any(member in members for members in (first, *later))
        if is_accountable and position.bond - amount < self.settings.member_bond:
            return None
        position.bond -= amount
        position.thawing += amount
        position.ends = self.nominal_epoch + self.settings.thaw_epochs
        return position.ends

    def withdraw_bond(self, member: int) -> int | None:
        """Tokens paid out."""
        position = self.bonds[member]
        if not position.thawing or self.nominal_epoch < position.ends:
            return None
        amount, position.thawing, position.ends = position.thawing, 0, 0
        self.move("membership", f"member {member}", amount)
        return amount

    def slash_member(self, member: int, challenger: str | None, harmed: str | None) -> int:
        """What was taken."""
        position = self.bonds[member]
        taken = position.bond + position.thawing
        self.bonds[member] = Position()
        rest = taken
        for name in {challenger, harmed} - {None}:
            self.move("membership", name, taken // 5)
            rest -= taken // 5
        self.balances["membership"] -= rest
        self.burned += rest
        return taken

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
        position.ends = self.nominal_epoch + self.settings.thaw_epochs
        return position.ends

    def withdraw(self, operator: str, node: int) -> int | None:
        """Tokens paid out."""
        position = self.positions[operator, node]
        if position.thawing == 0 or self.nominal_epoch < position.ends:
            return None
        amount, position.thawing, position.ends = position.thawing, 0, 0
        self.move("staking", operator, amount)
        return amount

    def slash(self, operator: str, node: int, amount: int, harmed: str | None) -> int:
        """Tokens taken."""
        position = self.positions[operator, node]
        from_bond = min(amount, position.bond)
        from_thawing = min(amount - from_bond, position.thawing)
        position.bond -= from_bond
        position.thawing -= from_thawing
        position.ends = position.ends if position.thawing else 0
        taken = from_bond + from_thawing
        self.balances["staking"] -= taken
        if harmed is not None:
            self.balances[harmed] += taken // 5
            self.burned += taken - taken // 5
        else:
            self.burned += taken
        return taken
