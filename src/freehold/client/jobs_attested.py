"""What a job accepts of quotes, and holding runs to it: for the class `attested`.

The policy is what the spec says, with its files read anew whenever a job is driven: collateral that is out of date by
then is replaced by whoever writes the files. A run counts if its node sent a quote for its receipt that the policy
accepts; a run without one is paid like any other, and counts nothing.

Invariant: of a step that is attested no result is accepted whose quote this very process has not verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from freehold.client.jobs_fields import FLAG, TEXT, Part, choice, many, one_of
from freehold.client.jobs_journal import OrderRow
from freehold.client.jobs_yaml import spec_error
from freehold.protocol.errors import FreeholdError, InvalidInput
from freehold.protocol.units import Hash
from freehold.services.compute.verification.attestation.policy import (
    MAKERS_ROOTS,
    STATUSES,
    Policy,
    check_least,
    check_measurement,
    make_policy,
    makers_root,
)
from freehold.services.compute.verification.attestation.verify import Attested, bind, verify

FILE_LIMIT = 2**20


@dataclass(frozen=True, kw_only=True)
class Hardware(Part):
    """What is accepted of the hardware that vouches for a result, for `attested`; docs/jobs.md says what it proves."""

    measurements: tuple[str, ...] = one_of(
        many(TEXT, "measurement"), "what may run: `sev-snp:HEX`, `tdx:MRTD:RTMR0:...`, `sgx:MRENCLAVE` and so on"
    )
    roots: tuple[str, ...] = one_of(
        many(TEXT, "root"),
        f"whose hardware is trusted: {', '.join(f'`{name}`' for name in MAKERS_ROOTS)}, or local files",
    )
    collateral: tuple[str, ...] = one_of(
        many(TEXT, "file"), "local files that the hardware's makers signed: revocation lists, Intel's collateral", ()
    )
    statuses: tuple[str, ...] = one_of(
        many(choice(*STATUSES), "status"), "what Intel's collateral may say of a platform", ("UpToDate",)
    )
    firmware: str = one_of(TEXT, "the least version of AMD's firmware: the report's `reported_tcb`, in hexadecimal", "")
    unchecked: bool = one_of(FLAG, "whether quotes count although no collateral says how their platform stands", False)

    def check(self) -> None:
        for text, check in [*((one, check_measurement) for one in self.measurements), (self.firmware, check_least)]:
            try:
                check(text)
            except InvalidInput as error:
                raise spec_error(error.message, text, error.advice) from None
        if not self.measurements or not self.roots:
            raise spec_error("hardware is accepted by at least one measurement and one root")


def read_policy(hardware: Hardware, base: Path) -> Policy:
    """The policy that a spec asks for; its files are below `base` unless their paths are absolute. InvalidInput."""
    roots = {name: makers_root(name) if name in MAKERS_ROOTS else _read(base, name) for name in hardware.roots}
    return make_policy(
        [str(one) for one in hardware.measurements],
        {str(name): data for name, data in roots.items()},
        {str(name): _read(base, name) for name in hardware.collateral},
        str(hardware.firmware),
        [str(one) for one in hardware.statuses],
        hardware.unchecked,
    )


def _read(base: Path, name: str) -> bytes:
    path = base / name
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        hint = f"A root is one of {', '.join(MAKERS_ROOTS)}, or a local file."
        raise spec_error(f"{path} cannot be read: {error.strerror}", name, hint) from None
    if len(data) > FILE_LIMIT:
        raise spec_error(f"{path} has more than {FILE_LIMIT} bytes", name)
    return data


class Quotes:
    """Holds the runs of a step to a policy, each once. `clock` gives unix time."""

    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        self._policy, self._clock = policy, clock
        self._found: dict[Hash, Attested | str] = {}

    def judge(self, row: OrderRow) -> Attested | str:
        """What the quote of a run that has a receipt shows, or why it shows nothing."""
        if row.id not in self._found:
            self._found[row.id] = self._judge(row)
        return self._found[row.id]

    def _judge(self, row: OrderRow) -> Attested | str:
        assert row.receipt is not None
        if not row.quote:
            return "its receipt came without a quote"
        try:
            return verify(row.quote, bind(row.receipt), self._policy, datetime.fromtimestamp(self._clock(), UTC))
        except FreeholdError as error:
            return f"its quote does not count: {error.message}"

    def refuses(self, row: OrderRow) -> bool:
        """Whether a run does not count."""
        return isinstance(self.judge(row), str)


def read_quotes(hardware: Hardware | None, base: Path, clock: Callable[[], float]) -> Quotes | None:
    """What holds a step's runs to its spec; None where that asks for no quotes. InvalidInput."""
    return None if hardware is None else Quotes(read_policy(hardware, base), clock)


def describe(found: Attested) -> dict[str, Any]:
    """As JSON, for `freehold job why`."""
    return {"hardware": found.kind, "measurement": found.measurement, "statuses": list(found.statuses),
            "unchecked": list(found.unchecked)}  # fmt: skip
