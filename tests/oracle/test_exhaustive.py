"""Every state that one member, or four of which one is corrupt, can reach within small bounds: none is wrong.

In each of them: no honest member has ever said two different things of one place, no vote follows from anything but its
manifest or was shown before Q members had sealed, no view has two reports that Q members may have signed, and none of
those lacks the certificate that f+1 honest members held. From a sample of them the epoch is brought to its end.

FREEHOLD_SOAK=1 goes deeper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import pytest

from freehold.oracle.chain_view import Start
from freehold.oracle.checks import PeerMessage
from freehold.oracle.events import BatchReceived, CertificateReceived, ChainAdvanced, Event, PriceSeen, Tick
from freehold.oracle.hidden import compute_seal
from freehold.oracle.setup import Setup
from freehold.protocol.batches import CLOSE, Batch, encode_batch, make_batch
from freehold.protocol.certificates import leader, make_certificate, quorum
from freehold.protocol.epoch import certified_subjects
from freehold.protocol.keys import Key
from freehold.protocol.messages import (
    Acknowledgement,
    Certificate,
    Close,
    Manifest,
    Observation,
    Report,
    Seal,
    ViewChange,
    Vote,
)
from freehold.protocol.state import AnchorData, genesis
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ONE, ZERO_HASH, Hash
from tests.oracle.explorer import Explorer, Scenario, Whole
from tests.oracle.fake_chain import KEYS, PARAMETERS, START, FakeChain
from tests.oracle.memo import remember
from tests.oracle.mistakes import MISTAKES
from tests.oracle.simulation import DOMAIN, NODE, TIMING, forget_settled, settle_once

CLOSE_ROUNDS = 6  # views in which every epoch ends once the faults have stopped
SAMPLE = 7  # of so many states, one is brought to its end


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        yield
    forget_settled()


def make_blocks(keys: list[Key]) -> tuple[Start, ChainAdvanced, AnchorData]:
    """The chain until epoch 1's anchor is final."""
    start = Start(START.block, PARAMETERS, tuple(key.address for key in keys))
    chain = FakeChain(DOMAIN, start)
    while chain.view.anchor is None:
        chain.mine()
    return start, ChainAdvanced(tuple(chain.blocks)), chain.view.anchor


def make_evidence(keys: list[Key], number: int) -> tuple[Batch, Certificate]:
    table = Table.of(Close, [Close(lease=keccak(f"lease {number}".encode()))])
    batch = make_batch(CLOSE, table, NODE, DOMAIN)
    acknowledgement = Acknowledgement(epoch=1, subject=batch.subject)
    signatures = {key.address: key.sign(acknowledgement, DOMAIN) for key in keys}
    return batch, make_certificate(acknowledgement, signatures, [key.address for key in keys])


class Corrupt:
    """The menu of one member of four: two observations, manifests over different ones, seals, votes for anything."""

    def __init__(
        self,
        key: Key,
        keys: list[Key],
        anchor: AnchorData,
        batches: dict[Hash, Batch],
        certificates: tuple[Certificate, ...],
        views: int,
    ) -> None:
        self.key, self.keys, self.anchor, self.batches = key, keys, anchor, batches
        self.certificates, self.views = certificates, views

    def _sign(self, message: PeerMessage, field: str = "member_signature") -> PeerMessage:
        return msgspec.structs.replace(message, **{field: self.key.sign(message, DOMAIN)})

    def __call__(self, said: list[PeerMessage]) -> Iterable[PeerMessage]:
        honest = [message for message in said if isinstance(message, Observation)]
        full = msgspec.structs.replace(honest[0], member=self.key.address, certificates=self.certificates)
        empty = msgspec.structs.replace(full, certificates=(), price=1)
        mine = [self._sign(full), self._sign(empty)]
        yield from mine
        members = [key.address for key in self.keys]
        reports: list[Report] = []
        if leader(1, 0, 0, members) == self.key.address:
            for observations in ((*honest[:2], mine[1]), (*honest[1:3], mine[0])):
                manifest = Manifest(epoch=1, attempt=0, view=0, observations=tuple(observations))
                yield self._sign(manifest, "leader_signature")
                batches = {s: self.batches[s] for s in certified_subjects(manifest)}
                block = START.block
                state = genesis(block.number, block.hash, block.time)
                reports.append(settle_once(state, manifest, batches, self.anchor).report)
        seal = Seal(epoch=1, attempt=0, view=0, seal=ZERO_HASH, member=self.key.address)
        yield self._sign(seal)
        for view in range(1, self.views + 1):
            yield self._sign(ViewChange(epoch=1, attempt=0, view=view, member=self.key.address))
        for report in reports:
            signature = self.key.sign(report, DOMAIN)
            yield Vote(report=report, salt=ZERO_HASH, member=self.key.address, member_signature=signature)


class Judge:
    """Looks at what was sent in a state: each message once."""

    def __init__(
        self,
        explorer: Explorer,
        keys: list[Key],
        honest: list[Key],
        batches: dict[Hash, Batch],
        anchor: AnchorData,
        certain: Hash | None,
    ) -> None:
        self.explorer, self.batches, self.anchor = explorer, batches, anchor
        self.members = [key.address for key in keys]
        self.honest = {key.address for key in honest}
        self.liars = len(keys) - len(honest)
        self.certain = certain  # held by f+1 honest members when they observed
        self._checked: set[int] = set()
        self.certifiable = 0

    def __call__(self, whole: Whole) -> None:
        if whole.sent in self._checked:
            return
        self._checked.add(whole.sent)
        messages = [m for i, m in enumerate(self.explorer.messages) if whole.sent >> i & 1]
        manifests = {m.struct_hash(): m for m in messages if isinstance(m, Manifest)}
        places: dict[tuple[object, ...], PeerMessage] = {}
        sealed: dict[int, dict[object, Hash]] = {}
        votes: dict[int, dict[Report, int]] = {}
        for message in messages:
            if isinstance(message, Manifest):
                signer = leader(message.epoch, message.attempt, message.view, self.members)
                place: tuple[object, ...] = (signer, Manifest, message.attempt, message.view)
            elif isinstance(message, Observation):
                signer, place = message.member, (message.member, Observation, message.anchor)
            elif isinstance(message, ViewChange):
                continue
            else:
                about = message.report if isinstance(message, Vote) else message
                signer, place = message.member, (message.member, type(message), about.attempt, about.view)
            if signer not in self.honest:
                continue
            assert places.setdefault(place, message) == message, f"two of {place}"
            if isinstance(message, Seal):
                sealed.setdefault(message.view, {})[signer] = message.seal
            elif isinstance(message, Vote):
                self._check_follows(message, manifests)
                of_view = votes.setdefault(message.report.view, {})
                of_view[message.report] = of_view.get(message.report, 0) + 1
        for place, message in places.items():
            if isinstance(message, Vote):
                view = message.report.view
                hidden = compute_seal(message.salt, message.report.struct_hash(), message.member)
                assert sealed[view][message.member] == hidden, f"{place} does not open its seal"
                assert len(sealed[view]) + self.liars >= quorum(len(self.members)), f"{place} came before Q seals"
        for view, reports in votes.items():
            signed = [one for one, count in reports.items() if count + self.liars >= quorum(len(self.members))]
            assert len(signed) <= 1, f"view {view} has two reports"
            for report in signed:
                self.certifiable += 1
                if self.certain is not None:
                    assert self.certain in certified_subjects(manifests[report.manifest]), "a certificate is left out"

    def _check_follows(self, vote: Vote, manifests: dict[Hash, Manifest]) -> None:
        manifest = manifests[vote.report.manifest]
        block = START.block
        state = genesis(block.number, block.hash, block.time)
        batches = {s: self.batches[s] for s in certified_subjects(manifest)}
        assert settle_once(state, manifest, batches, self.anchor).report == vote.report, "a vote does not follow"


def explore(
    count: int, corrupt: int | None, crashes: int, timeouts: int, depth: int, from_birth: bool = False
) -> tuple[int, bool, Judge]:
    """States, whether there are no others within the bounds, and the judge. `from_birth`: what comes before the
    observations is explored too."""
    keys = KEYS[:count]
    start, blocks, anchor = make_blocks(keys)
    honest = [key for i, key in enumerate(keys) if i != corrupt]
    evidence = [make_evidence(keys, number) for number in range(2)]
    batches = {batch.subject: batch for batch, _ in evidence}
    certificates = tuple(sorted((certificate for _, certificate in evidence), key=lambda c: c.subject))
    scripts = []
    for i in range(len(honest)):
        script: list[Event] = [PriceSeen(ONE + i)]
        script += [BatchReceived(batch, encode_batch(batch), 0) for batch, _ in evidence]
        held = evidence if i == 0 else evidence[:1] if i == 1 else []  # the first by f+1, the second by one
        script += [CertificateReceived(certificate, 0) for _, certificate in held]
        scripts.append((*script, blocks, Tick(0)))
    done = 0 if from_birth else max(map(len, scripts))
    members = [key.address for key in keys]
    leaders = frozenset(leader(1, 0, view, members) for view in range(timeouts + 1))
    setups = tuple(Setup(key, DOMAIN, start, {}, TIMING) for key in honest)
    menu = Corrupt(keys[corrupt], keys, anchor, batches, certificates, timeouts) if corrupt is not None else no_menu
    explorer = Explorer(Scenario(setups, tuple(scripts), done, batches, menu, leaders, crashes, timeouts))
    judge = Judge(explorer, keys, honest, batches, anchor, None if from_birth else evidence[0][0].subject)
    visited = 0

    def check(whole: Whole) -> None:
        nonlocal visited
        visited += 1
        judge(whole)
        if visited % SAMPLE == 0:
            end = explorer.close(whole, CLOSE_ROUNDS)
            judge(end)
            assert explorer.is_certified(end), "the epoch does not end"

    states, is_all = explorer.explore(check, depth)
    print(
        f"{count} members, corrupt: {corrupt}, {crashes} crashes, {timeouts} timeouts, {depth} steps: {states} states"
        f"{' (all)' if is_all else ''}, {explorer.transitions} transitions, {len(explorer.locals)} states of members,"
        f" {len(explorer.messages)} messages, {judge.certifiable} times a report that Q may have signed"
    )
    return states, is_all, judge


def no_menu(said: list[PeerMessage]) -> Iterable[PeerMessage]:
    return ()


# (members, the corrupt one's position, crashes, timeouts, steps): member 1 leads view 0 of epoch 1, member 2 view 1
FOUR = [(1, 0, 0, 6), (1, 1, 0, 3), (0, 0, 1, 3)]
DEEP = [(1, 0, 0, 10), (1, 1, 0, 6), (0, 0, 1, 6), (0, 1, 1, 5), (2, 0, 2, 5), (1, 2, 1, 4)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bounds", FOUR, ids=str)
def test_four_members_one_of_them_corrupt(bounds: tuple[int, int, int, int]) -> None:
    states, _, judge = explore(4, *bounds)
    assert states > 500
    assert judge.certifiable > 0


@pytest.mark.timeout(120)
def test_one_member_alone_in_all_its_states() -> None:
    states, is_all, judge = explore(1, None, crashes=2, timeouts=1, depth=40, from_birth=True)
    assert is_all, "there are more states than the bound allows"
    assert states > 50
    assert judge.certifiable > 0


@pytest.mark.parametrize("mistake", ["leaves a certificate out", "votes before Q have sealed", "votes twice"])
def test_a_member_that_is_wrong_is_caught(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for patch in MISTAKES[mistake][1]:
        monkeypatch.setattr(*patch)
    with pytest.raises(AssertionError):
        explore(4, 1, crashes=0, timeouts=0, depth=5)


@pytest.mark.soak
@pytest.mark.timeout(12 * 3600)
@pytest.mark.parametrize("bounds", DEEP, ids=str)
def test_four_members_deeper(bounds: tuple[int, int, int, int]) -> None:
    _, _, judge = explore(4, *bounds)
    assert judge.certifiable > 0
