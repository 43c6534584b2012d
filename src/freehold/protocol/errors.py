"""Every exception of Freehold, in one small tree.

    FreeholdError                 has a stable code, a hint, and says whether trying again can help
    ├── InvalidInput              what came in cannot be right, whoever sends it        (HTTP 400)
    │   ├── MalformedMessage      bytes or JSON that do not decode to the type
    │   ├── WrongSignature        signed by another key, for another chain, or not at all   (401)
    │   ├── DeadlineExpired       the message's deadline has passed                          (401)
    │   ├── NonceReused           this nonce was seen before                                 (409)
    │   └── BodyTooLarge          more bytes than the receiver takes                         (413)
    ├── Refused                   well formed, but not now or not here                   (409)
    │   ├── NotFound              no such lease, shard, object, epoch, account               (404)
    │   ├── Conflict              the state moved on; carries the newer state
    │   ├── EpochClosed           the epoch named takes nothing more; ask again for the open one
    │   ├── InsufficientCredits   says how many are missing                                  (402)
    │   ├── InsufficientOperators says how many there are and how many are needed
    │   ├── DiskFull              the allowance or the disk is used up                       (507)
    │   └── Overloaded            too much at once; try again after a while                  (429)
    ├── Unavailable               a peer or the chain did not answer                     (503)
    │   ├── ChainError            the RPC end failed, or a transaction reverted
    │   └── WrongCertificate      somebody answered, but nothing shows that it is the peer
    ├── Corrupt                   stored or received bytes are not what was promised     (502)
    │   └── ReplayMismatch        a bundle does not lead to its report; names the first difference
    ├── WrongPassphrase           a key or a name does not open with this secret         (401)
    └── Overflow                  an integer left its range; always a bug or an attack   (500)

A bad *proof* is not here: it is a verdict (`verdicts.py`), kept and shown.
"""

from __future__ import annotations

from typing import Any, ClassVar


class FreeholdError(Exception):
    """Base of all. `details` are JSON-ready facts that a caller can act on without reading the sentence."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.advice = hint or self.hint

    def to_json(self) -> dict[str, Any]:
        """The error as it crosses the network and as the CLI's `--json` prints it."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.advice,
            "retryable": self.retryable,
            "details": self.details,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> FreeholdError:
        """The typed error behind `to_json`'s form; an unknown code gives the base class."""
        kind = _by_code(FreeholdError).get(str(value.get("code")), FreeholdError)
        details = value.get("details")
        error = kind(str(value.get("message", "unknown error")), hint=str(value.get("hint", "")))
        error.details = details if isinstance(details, dict) else {}
        return error


class InvalidInput(FreeholdError):
    code, status = "invalid_input", 400


class MalformedMessage(InvalidInput):
    code = "malformed_message"


class WrongSignature(InvalidInput):
    code, status = "wrong_signature", 401
    hint = "Check the key, the chain id and the network file."


class DeadlineExpired(InvalidInput):
    code, status, retryable = "deadline_expired", 401, True
    hint = "Check the clock of this machine."


class NonceReused(InvalidInput):
    code, status = "nonce_reused", 409


class BodyTooLarge(InvalidInput):
    code, status = "body_too_large", 413


class Refused(FreeholdError):
    code, status = "refused", 409


class NotFound(Refused):
    code, status = "not_found", 404


class Conflict(Refused):
    code, retryable = "conflict", True


class EpochClosed(Refused):
    code, retryable = "epoch_closed", True


class InsufficientCredits(Refused):
    code, status = "insufficient_credits", 402
    hint = "Buy credits with `freehold credits buy`."


class InsufficientOperators(Refused):
    code = "insufficient_operators"
    hint = "Wait until more operators are up, or use a bucket with a smaller n."


class DiskFull(Refused):
    code, status = "disk_full", 507


class Overloaded(Refused):
    code, status, retryable = "overloaded", 429, True


class Unavailable(FreeholdError):
    code, status, retryable = "unavailable", 503, True


class ChainError(Unavailable):
    code = "chain_error"


class WrongCertificate(Unavailable):
    code, retryable = "wrong_certificate", False
    hint = "Somebody else answers there, or the network file is older than the peer's certificate."


class Corrupt(FreeholdError):
    code, status = "corrupt", 502


class ReplayMismatch(Corrupt):
    code = "replay_mismatch"


class WrongPassphrase(FreeholdError):
    code, status = "wrong_passphrase", 401


class Overflow(FreeholdError):
    code = "overflow"


def _by_code(kind: type[FreeholdError]) -> dict[str, type[FreeholdError]]:
    """The tree below `kind`, by code: looked up when needed, since a layer may add errors of its own.

    One without a code of its own is its parent to everybody else.
    """
    found = {kind.code: kind}
    for child in kind.__subclasses__():
        found = _by_code(child) | found
    return found
