"""Signature checks of what peers send, remembered, so that the same certificate in four observations costs one.

What passes here is what `protocol.epoch.check_manifest` accepts; a test holds the two together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from freehold.protocol.certificates import CERTIFICATE_EPOCHS, check_certificate, leader, quorum
from freehold.protocol.errors import MalformedMessage, WrongSignature
from freehold.protocol.keys import check_signed_by
from freehold.protocol.messages import Certificate, Manifest, Observation, Seal, ViewChange, Vote
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash

REMEMBERED = 100_000  # checks; about 10 MB
CERTIFICATES_LIMIT = 20_000  # in one observation

PeerMessage = Observation | Manifest | ViewChange | Seal | Vote


class Checks:
    """The checks of one network's members, and a bounded memory of what has passed.

    `members_of` gives the members of an epoch, which never change once it has begun.
    """

    def __init__(self, members_of: Callable[[int], Sequence[Address]], domain: Domain) -> None:
        self.members_of = members_of
        self.domain = domain
        self._passed: OrderedDict[Hash, None] = OrderedDict()

    def _is_new(self, key: Hash) -> bool:
        if key in self._passed:
            self._passed.move_to_end(key)
            return False
        return True

    def _remember(self, key: Hash) -> None:
        self._passed[key] = None
        if len(self._passed) > REMEMBERED:
            self._passed.popitem(last=False)

    def check_certificate(self, certificate: Certificate) -> None:
        """WrongSignature unless exactly Q members of the epoch that it names signed."""
        key = certificate.struct_hash()
        if self._is_new(key):
            check_certificate(certificate, self.members_of(certificate.epoch), self.domain)
            self._remember(key)

    def check_counts(self, certificate: Certificate, epoch: int) -> None:
        """Raise unless the certificate is valid, and may be observed for `epoch`."""
        if not epoch - CERTIFICATE_EPOCHS <= certificate.epoch <= epoch:
            raise MalformedMessage("a certificate names an epoch that is still to come, or long past")
        self.check_certificate(certificate)

    def check_observation(self, observation: Observation, anchor: Hash) -> None:
        """Raise unless a member signed it over this anchor, and every certificate in it counts for its epoch."""
        if observation.anchor != anchor:
            raise MalformedMessage(f"{observation.member} observed another anchor")
        key = observation.row_hash()
        if not self._is_new(key):
            return
        if len(observation.certificates) > CERTIFICATES_LIMIT:
            raise MalformedMessage(f"an observation has at most {CERTIFICATES_LIMIT} certificates")
        self.check_signer(observation)
        for certificate in observation.certificates:
            self.check_counts(certificate, observation.epoch)
        self._remember(key)

    def check_manifest(self, manifest: Manifest, anchor: Hash) -> None:
        """Raise unless its view's leader signed it over Q members' observations of this anchor."""
        self.check_signer(manifest)
        observers = {observation.member for observation in manifest.observations}
        needed = quorum(len(self.members_of(manifest.epoch)))
        if len(observers) != len(manifest.observations) or len(observers) != needed:
            raise MalformedMessage(f"a manifest has {needed} observations of different members")
        for observation in manifest.observations:
            if observation.epoch != manifest.epoch:
                raise MalformedMessage(f"{observation.member} observed another epoch")
            self.check_observation(observation, anchor)

    def check_signer(self, message: PeerMessage) -> None:
        """WrongSignature unless the member that the message is from signed it, and is one in the epoch it is about."""
        members = self.members_of(epoch_of(message))
        signer = sender_of(message, members)
        if signer not in members:
            raise WrongSignature(f"{signer} is not a member")
        if isinstance(message, Manifest):
            check_signed_by(message, message.leader_signature, signer, self.domain)
        elif isinstance(message, Vote):
            check_signed_by(message.report, message.member_signature, signer, self.domain)
        else:
            check_signed_by(message, message.member_signature, signer, self.domain)


def sender_of(message: PeerMessage, members: Sequence[Address]) -> Address:
    """Whose message it is: the member it names, or the leader of its view."""
    if isinstance(message, Manifest):
        return leader(message.epoch, message.attempt, message.view, members)
    return message.member


def epoch_of(message: PeerMessage) -> int:
    """The epoch that a message is about."""
    return message.report.epoch if isinstance(message, Vote) else message.epoch


def attempt_of(message: PeerMessage) -> int | None:
    """Which attempt at its epoch a message is about; an observation is for all that have its anchor."""
    if isinstance(message, Observation):
        return None
    return message.report.attempt if isinstance(message, Vote) else message.attempt
