"""What makers say of platforms, held against quotes: revoked, out of date, forged, or about something else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.services.compute.verification.attestation.certificates import QuoteRefused
from tests.services.compute.quote_maker import DAYS, NOW, Authority
from tests.services.compute.test_attestation import BOUND, SNP, TD, check, chip, platform, rules


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"level": {"tcbStatus": "OutOfDate"}}, "status is OutOfDate"),
        ({"level": {"tcbStatus": "Revoked"}}, "status is Revoked"),
        ({"info": {"nextUpdate": "2025-06-19T11:00:00Z"}}, "TCB info is valid from"),
        ({"info": {"issueDate": "2025-06-21T00:00:00Z"}}, "TCB info is valid from"),
        ({"identity": {"nextUpdate": "2025-06-19T11:00:00Z"}}, "QE identity is valid from"),
        ({"info": {"tcbLevels": []}}, "older than every level"),
        ({"info": {"pceId": "0100"}}, "another platform"),
        ({"info": {"tdxModuleIdentities": []}}, "does not know the TDX module"),
        ({"info": {"fmspc": "000000000000"}}, "collateral not checked: no collateral says"),
        ({"info": {"id": "SGX"}}, "collateral not checked: no collateral says"),
        ({"identity": {"id": "QE"}}, "not the one of the QE identity"),
        ({"identity": {"mrsigner": "00" * 32}}, "not the one of the QE identity"),
        ({"identity": {"isvprodid": 9}}, "not the one of the QE identity"),
        ({"identity": {"attributes": "15" + "00" * 15, "miscselect": "01000000"}}, "other attributes"),
        ({"identity": {"attributes": "35" + "00" * 15}}, "other attributes"),
        ({"identity": {"tcbLevels": [{"tcb": {"isvsvn": 9}, "tcbStatus": "UpToDate"}]}}, "quoting enclave is older"),
        ({"identity": {"tcbLevels": [{"tcb": {"isvsvn": 1}, "tcbStatus": "Revoked"}]}}, "status is Revoked"),
        ({"signer": Authority("Intel SGX TCB Signing", is_ca=False)}, "leads to no root"),
    ],
)
def test_what_collateral_says(given: dict[str, Any], reason: str) -> None:
    policy = rules(platform().root, TD, collateral={"c.json": platform().collateral(**given)})
    with pytest.raises(QuoteRefused, match=reason):
        check(platform().quote(BOUND), policy)


def test_collateral_is_signed_by_whose_task_it_is() -> None:
    machine = platform()
    forged = machine.collateral().replace(b"UpToDate", b"UpToDatf")
    platforms = machine.collateral(signer=machine.pck, chain=machine.pck.pem + machine.issuer.pem + machine.root.pem)
    for data, reason in ((forged, "TCB info is not signed by its key"), (platforms, "whose task that is not")):
        with pytest.raises(QuoteRefused, match=reason):
            check(machine.quote(BOUND), rules(machine.root, TD, collateral={"c.json": data}))


def test_the_newest_of_several_counts() -> None:
    stale = platform().collateral(info={"nextUpdate": "2025-06-19T11:00:00Z"})
    policy = rules(platform().root, TD, collateral={"old.json": stale, "new.json": platform().collateral()})
    assert check(platform().quote(BOUND), policy).unchecked == ()


def test_what_was_revoked() -> None:
    machine, made = platform(), chip()
    for lists in (
        (machine.root.crl(), machine.issuer.crl(machine.pck)),
        (machine.root.crl(machine.issuer), machine.issuer.crl()),
    ):
        policy = rules(machine.root, TD, collateral={"c.json": machine.collateral(crls=lists)})
        with pytest.raises(QuoteRefused, match="was revoked by its issuer"):
            check(machine.quote(BOUND), policy)
    lists = machine.root.crl(machine.signer), machine.issuer.crl()
    with pytest.raises(QuoteRefused, match="TCB Signing' was revoked"):
        check(machine.quote(BOUND), rules(machine.root, TD, collateral={"c.json": machine.collateral(crls=lists)}))
    for crl, reason in (
        (made.root.crl(made.ask), "'SEV-Test' was revoked"),
        (made.root.crl(dates=(NOW - DAYS, NOW - timedelta(1))), "not valid now"),
        (Authority("ARK-Test", curve=ec.SECP384R1()).crl(), "is not signed by it"),
    ):
        with pytest.raises(QuoteRefused, match=reason):
            check(made.quote(BOUND), rules(made.root, SNP, collateral={"ark.crl": crl}, accept_unchecked=True))


def test_the_least_firmware_is_held_part_by_part() -> None:
    for least, good in (((3, 0, 0, 0, 0, 0, 8, 115), True), ((2, 0, 0, 0, 0, 0, 8, 0), True),
                        ((0, 0, 0, 0, 0, 0, 9, 0), False), ((4, 0, 0, 0, 0, 0, 0, 0), False)):  # fmt: skip
        policy = rules(chip().root, SNP, least_firmware=bytes(least).hex())
        if good:
            check(chip().quote(BOUND), policy)
        else:
            with pytest.raises(QuoteRefused, match="below the least"):
                check(chip().quote(BOUND), policy)
