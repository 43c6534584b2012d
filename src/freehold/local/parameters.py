"""What the local network is made of: every number in one place.

Prices are far above the market's, so that the payments of a 20 second epoch have digits that people can read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from freehold.protocol.errors import InvalidInput
from freehold.protocol.parameters import Parameters
from freehold.protocol.units import ONE

MIB, GIB = 2**20, 2**30


_TAKES: dict[type, tuple[type, ...]] = {float: (float, int), type(None): (int, type(None))}


class LocalSettings(NamedTuple):
    """A local network. Times are seconds; `stream_price` is credits (1e18) per TiB-hour, `voucher_price` per TiB,
    `compute_price` for an hour of one processor."""

    members: int = 4  # 3f + 1 with f = 1
    operators: int = 8
    epoch_length: int = 20
    answering_window: int = 6
    finality_depth: int = 1  # the keeper of the local chain loses at most the newest block (chain.py)
    dispute_window: int = 40
    reveal_seconds: int = 60  # from a challenge's commitment to the end of its hold
    block_interval: float = 2.0
    step: int | None = None  # seconds of chain time a block; None: the clock's
    view_timeout: float = 5.0
    poll: float = 0.5  # how often members and nodes look at the chain
    k: int = 3
    n: int = 6
    initial_supply: int = 100_000_000 * ONE
    cap: int = 1_000_000_000 * ONE
    price: int = ONE // 2  # US dollars a token
    bond: int = 2_000 * ONE
    member_bond: int = 20_000 * ONE
    dispute_bond: int = 100 * ONE
    operator_tokens: int = 10_000 * ONE  # beside the bond
    client_tokens: int = 1_000_000 * ONE
    client_credits: int = 100_000 * ONE  # bought for the client by burning tokens
    stream_price: int = 1_000 * ONE
    voucher_price: int = 500 * ONE
    compute_price: int = 100 * ONE
    allowance: int = 20 * GIB  # bytes of disk a node may use
    compute: bool = True  # whether nodes run others' programs too
    compute_allowance: int = 4 * GIB  # of a node's disk
    slots: int = 2  # orders that a node runs at once
    module_cache: str = ""  # a folder of compiled modules that several networks share; none: this network's own
    tls: bool = False  # whether members and nodes speak https: between processes of one machine it hides nothing
    gateway: bool = True  # whether an S3 gateway serves the client's account
    restart: bool = True  # whether a program that ends is started again

    @staticmethod
    def from_json(value: Any) -> LocalSettings:
        """The defaults, changed by an object's entries. InvalidInput names one that is unknown or of another type."""
        if not isinstance(value, dict):
            raise InvalidInput("the settings must be a JSON object")
        for name, item in value.items():
            if name not in LocalSettings._fields:
                raise InvalidInput(f"a local network has no setting {name!r}")
            kind = type(LocalSettings._field_defaults[name])
            if type(item) not in _TAKES.get(kind, (kind,)):
                raise InvalidInput(f"the setting {name!r} cannot be {item!r}")
        return LocalSettings(**value)

    def parameters(self) -> Parameters:
        """What the deployment fixes on chain."""
        return Parameters(
            epoch_length=self.epoch_length,
            answering_window=self.answering_window,
            finality_depth=self.finality_depth,
            challenges=8,
            tau=100_000,  # a tenth of every credit burns for good
            beta=500_000,
            initial_subsidy=100 * ONE,
            halving_epochs=1_000_000,
            minimum_bond=1_000 * ONE,
            wrong_result_slash=500 * ONE,
            lapse_grace=3,
            lock_release=2,
            segment_size=8 * MIB,
            dispute_window=self.dispute_window,
            # Whoever cheated must not be gone, however long the work, and however late it is disputed.
            thaw_epochs=264 - (-self.dispute_window // self.epoch_length),
            max_price_age=7 * 86_400,  # a laptop may sleep for a week and still buy credits
            initial_price=self.price,
            member_share=50_000,
            coverage_share=100_000,  # ten tokens an epoch, for `freehold fleet` to show
            device_bond=ONE,  # an operator's bond covers 2,000 devices
            freeze_lengths=12,
            answer_reports=3,
            claim_epochs=4 * 4_320,  # who has not claimed for a day still gets all of it at once
            bundle_epochs=500,
        )


DEFAULT = LocalSettings()
