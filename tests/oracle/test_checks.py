"""The remembered checks take exactly what the specification's `check_manifest` takes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from freehold.oracle.checks import Checks
from freehold.protocol.certificates import CERTIFICATE_EPOCHS, leader, make_certificate
from freehold.protocol.epoch import check_manifest
from freehold.protocol.errors import FreeholdError, WrongSignature
from freehold.protocol.messages import Acknowledgement, Certificate, Manifest, Observation, ViewChange
from freehold.protocol.state import AnchorData, MemberSet
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Hash, Signature
from tests.oracle.fake_chain import PARAMETERS
from tests.oracle.simulation import CLIENTS, DOMAIN, KEYS, MEMBERS

EPOCH = 20
ANCHOR = AnchorData(
    epoch=EPOCH,
    anchor_block=1,
    anchor_hash=keccak(b"anchor"),
    anchor_time=1,
    beacon_block=1,
    beacon_hash=keccak(b"beacon"),
    previous=ZERO_HASH,
    nodes=(),
    buyers=(),
    fleets=(),
    changes=(),
    collections=(),
    collected=ZERO_HASH,
    membership=(MemberSet(from_epoch=1, members=MEMBERS),),
    parameters=PARAMETERS,
)
BY_ADDRESS = {key.address: key for key in [*KEYS, *CLIENTS]}


def certificate(epoch: int = EPOCH, subject: Hash = ZERO_HASH) -> Certificate:
    message = Acknowledgement(epoch=epoch, subject=subject)
    return make_certificate(message, {key.address: key.sign(message, DOMAIN) for key in KEYS}, MEMBERS)


def observation(i: int, certificates: tuple[Certificate, ...] = (), **changes: Any) -> Observation:
    fields = {"epoch": EPOCH, "anchor": ANCHOR.struct_hash(), "price": 1, "member": MEMBERS[i]}
    fields |= {"commitment": ZERO_HASH, "reveal": ZERO_HASH} | changes
    unsigned = Observation(certificates=certificates, **fields)
    signature = BY_ADDRESS[unsigned.member].sign(unsigned, DOMAIN)
    return msgspec.structs.replace(unsigned, member_signature=signature)


def manifest(*observations: Observation, epoch: int = EPOCH) -> Manifest:
    unsigned = Manifest(epoch=epoch, attempt=0, view=0, observations=observations)
    key = BY_ADDRESS[leader(epoch, 0, 0, MEMBERS)]
    return msgspec.structs.replace(unsigned, leader_signature=key.sign(unsigned, DOMAIN))


GOOD = [observation(i, (certificate(), certificate(EPOCH - CERTIFICATE_EPOCHS, keccak(b"old")))) for i in range(3)]
BROKEN = msgspec.structs.replace(certificate(), signatures=certificate().signatures[:-1] + b"\x00")
CASES: dict[str, tuple[Manifest, bool]] = {
    "good": (manifest(*GOOD), True),
    "no certificates": (manifest(*(observation(i) for i in (3, 1, 0))), True),
    "too few": (manifest(*GOOD[:2]), False),
    "too many": (manifest(*GOOD, observation(3)), False),
    "one twice": (manifest(GOOD[0], GOOD[1], observation(1, (certificate(),))), False),
    "a stranger": (manifest(*GOOD[:2], observation(0, member=CLIENTS[0].address)), False),
    "another epoch": (manifest(*GOOD[:2], observation(2, epoch=EPOCH - 1)), False),
    "another anchor": (manifest(*GOOD[:2], observation(2, anchor=ZERO_HASH)), False),
    "not signed": (manifest(*GOOD[:2], msgspec.structs.replace(GOOD[2], price=2)), False),
    "a broken certificate": (manifest(*GOOD[:2], observation(2, (BROKEN,))), False),
    "a certificate to come": (manifest(*GOOD[:2], observation(2, (certificate(EPOCH + 1),))), False),
    "a certificate long past": (
        manifest(*GOOD[:2], observation(2, (certificate(EPOCH - CERTIFICATE_EPOCHS - 1),))),
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_manifests_pass(name: str) -> None:
    case, passes = CASES[name]
    checks = Checks(lambda _: MEMBERS, DOMAIN)
    for _ in range(2):  # what is remembered changes nothing
        if passes:
            checks.check_manifest(case, ANCHOR.struct_hash())
            check_manifest(case, ANCHOR, DOMAIN)
        else:
            with pytest.raises(FreeholdError):
                checks.check_manifest(case, ANCHOR.struct_hash())
            with pytest.raises(FreeholdError):
                check_manifest(case, ANCHOR, DOMAIN)


def test_a_manifest_is_its_leaders_and_a_message_its_members() -> None:
    checks = Checks(lambda _: MEMBERS, DOMAIN)
    checks.check_signer(CASES["good"][0])
    with pytest.raises(WrongSignature):
        checks.check_signer(msgspec.structs.replace(CASES["good"][0], view=1))
    change = ViewChange(epoch=1, attempt=0, view=2, member=CLIENTS[0].address)
    signed = msgspec.structs.replace(change, member_signature=CLIENTS[0].sign(change, DOMAIN))
    with pytest.raises(WrongSignature, match="not a member"):
        checks.check_signer(signed)
    with pytest.raises(WrongSignature):
        checks.check_signer(msgspec.structs.replace(change, member=MEMBERS[0], member_signature=Signature()))
