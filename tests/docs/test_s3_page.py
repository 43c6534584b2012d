"""The page on S3 says what the gateway does."""

from __future__ import annotations

from freehold.gateway.config import GatewayConfig
from freehold.gateway.faults import to_s3
from freehold.protocol.errors import Conflict, Corrupt, DiskFull, InsufficientCredits, Overloaded, Unavailable
from scripts import s3_table
from tests.docs.pages import ROOT


def test_the_table_is_what_the_gateway_does() -> None:
    text = s3_table.PAGE.read_text(encoding="utf-8")
    assert s3_table.build_page(text) == text
    assert text.count("| NotImplemented |") > 50
    assert text.count("| offered") > 50


def test_the_table_of_errors_is_what_they_become() -> None:
    text = s3_table.PAGE.read_text(encoding="utf-8")
    for kind in (InsufficientCredits, Overloaded, Unavailable, DiskFull, Conflict, Corrupt):
        error = to_s3(kind("something"))
        assert f"| {error.status} `{error.code}`" in text, kind


def test_every_key_of_a_gateways_configuration_is_described() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = text.partition("## An S3 gateway")[2].partition("\n## ")[0]
    assert not [name for name in GatewayConfig.__dataclass_fields__ if f"`{name}`" not in section]
