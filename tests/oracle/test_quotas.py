"""What members hold fits into the manifest that they make of it, however many they are."""

from __future__ import annotations

import pytest

from freehold.oracle.quotas import HELD_LIMIT, QUOTAS, Standing, Usage, held_limit
from freehold.oracle.server import MESSAGE_LIMIT
from freehold.protocol.certificates import MEMBERS_LIMIT, quorum
from freehold.protocol.errors import Overloaded
from freehold.protocol.messages import Certificate, Manifest, Observation
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash, Signature

ZERO = Hash(bytes(32))


def manifest_of(members: int, certificates: int) -> int:
    """Bytes of a manifest with so many certificates in every observation; computed from one with one in each."""
    signers = quorum(members)
    certificate = Certificate(
        epoch=2**63, subject=keccak(b"batch"), signers=2**members - 1, signatures=bytes(65 * signers)
    )
    observation = Observation(
        epoch=2**63, anchor=ZERO, price=2**95, commitment=ZERO, reveal=ZERO, certificates=(certificate,),
        member=Address(bytes(20)), member_signature=Signature(bytes(65)),
    )  # fmt: skip
    whole = Manifest(epoch=2**63, attempt=0, view=2**31, observations=(observation,) * signers)
    return len(whole.to_bytes()) + signers * (certificates - 1) * (len(certificate.to_bytes()) + 1)


@pytest.mark.parametrize("members", [4, 7, 10, 16, MEMBERS_LIMIT])
def test_a_manifest_of_all_that_may_be_held_is_a_message(members: int) -> None:
    signers = quorum(members)
    limit = held_limit(signers)
    assert manifest_of(members, limit) < MESSAGE_LIMIT
    assert limit == HELD_LIMIT or manifest_of(members, 2 * limit) > MESSAGE_LIMIT


def test_a_large_quorum_holds_fewer_and_leaves_bonded_nodes_their_half() -> None:
    usage, signers, limit, numbers = (
        Usage(),
        quorum(MEMBERS_LIMIT),
        held_limit(quorum(MEMBERS_LIMIT)),
        iter(range(9999)),
    )

    def fill(standing: Standing, sender: int) -> int:
        taken = 0
        while True:
            subject = keccak(next(numbers).to_bytes(4))
            try:
                usage.hold(subject, Address(bytes(19) + bytes([sender])), standing, 1, signers)
            except Overloaded:
                return taken
            taken += 1

    clients = [fill(Standing.KNOWN, sender) for sender in range(1, 9)]
    assert clients[0] == QUOTAS[Standing.KNOWN].held * limit // HELD_LIMIT
    assert sum(clients) == limit // 2
    assert fill(Standing.BONDED, 100) == QUOTAS[Standing.BONDED].held * limit // HELD_LIMIT
