"""Quorum arithmetic, and certificates: Q members' signatures over one acknowledgement.

With n >= 3f+1 members and Q = floor((n+f)/2) + 1, any two sets of Q share an honest member, and Q honest members
are enough to go on (n - f >= Q). Source: OCR3 (libocr), PBFT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from freehold.protocol.errors import InvalidInput, WrongSignature
from freehold.protocol.keys import recover
from freehold.protocol.messages import Acknowledgement, Certificate
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash, Signature

MEMBERS_LIMIT = 31
SIGNATURE_BYTES = 65
CERTIFICATE_EPOCHS = 8  # how long after the epoch it names a certificate may be observed; batches are kept that long


def faults(n: int) -> int:
    """f: how many of n members may lie."""
    return (n - 1) // 3


def quorum(n: int) -> int:
    """Q = floor((n + f) / 2) + 1."""
    return (n + faults(n)) // 2 + 1


def make_certificate(
    acknowledgement: Acknowledgement, signatures: Mapping[Address, Signature], members: Sequence[Address]
) -> Certificate:
    """The certificate of exactly Q of the given signatures; InvalidInput where there are fewer."""
    chosen = [i for i, member in enumerate(members) if member in signatures][: quorum(len(members))]
    if len(chosen) < quorum(len(members)):
        raise InvalidInput(f"{len(chosen)} acknowledgements, of {quorum(len(members))} needed")
    return Certificate(
        epoch=acknowledgement.epoch,
        subject=acknowledgement.subject,
        signers=sum(1 << i for i in chosen),
        signatures=b"".join(signatures[members[i]] for i in chosen),
    )


def check_certificate(certificate: Certificate, members: Sequence[Address], domain: Domain) -> None:
    """WrongSignature unless exactly Q members signed, each once, in the members' order."""
    signers = [member for i, member in enumerate(members) if certificate.signers >> i & 1]
    if certificate.signers >> len(members) or len(signers) != quorum(len(members)):
        raise WrongSignature(f"a certificate needs exactly {quorum(len(members))} of the {len(members)} members")
    if len(certificate.signatures) != SIGNATURE_BYTES * len(signers):
        raise WrongSignature("a certificate's signatures have the wrong length")
    digest = Acknowledgement(epoch=certificate.epoch, subject=certificate.subject).digest(domain)
    for i, member in enumerate(signers):
        signature = Signature(certificate.signatures[SIGNATURE_BYTES * i : SIGNATURE_BYTES * (i + 1)])
        if recover(digest, signature) != member:
            raise WrongSignature(f"the certificate's signature {i} is not {member}'s")


def leader(epoch: int, attempt: int, view: int, members: Sequence[Address]) -> Address:
    """The member that publishes the manifest of `epoch`, `attempt` in `view`."""
    return members[(epoch + attempt + view) % len(members)]


def median(values: Sequence[int]) -> int:
    """The lower median: with at most f liars among Q it lies between honest values."""
    return sorted(values)[(len(values) - 1) // 2]


def subjects_of(certificates: Sequence[Certificate]) -> list[Hash]:
    """The distinct subjects, sorted: the order in which an epoch reads its batches."""
    return sorted({certificate.subject for certificate in certificates})
