"""A client's own list, page by page: whole, bounded, for nobody else."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from freehold.net.auth import authorize
from freehold.protocol.errors import MalformedMessage, WrongSignature
from freehold.protocol.keys import Key
from freehold.protocol.units import ZERO_HASH, Hash
from freehold.services.storage import listing
from freehold.services.storage.listing import Entry, parse_page
from tests.protocol.world import DOMAIN
from tests.services.storage.provider_world import CLIENT, NODE, NOW, STRANGER, FakeRequest, Provided, Shard


async def show(provided: Provided, start: str, signer: Key = CLIENT) -> tuple[list[Entry], int | None]:
    path = f"/v1/storage/{provided.id}/entries?start={start}"
    headers = authorize(signer, "GET", path, ZERO_HASH, NODE.address, DOMAIN, provided.now, Hash(os.urandom(32)))
    request: Any = FakeRequest("GET", path, {"lease": str(provided.id)}, headers, b"")
    response = await provided.provider._listing.show(request)
    assert isinstance(response.body, bytes)
    return parse_page(response.body, int(start))


def test_pages_show_every_entry_with_its_arrival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE", 2)

    async def scenario() -> None:
        async with Provided(tmp_path) as provided:
            assert await show(provided, "0") == ([], None)
            shards = [Shard(100 + i, i) for i in range(5)]
            await provided.change(shards[:3])
            provided.now += 50
            await provided.change(shards[3:])
            await provided.change(remove=[1])
            entries, start = [], 0
            while start is not None:
                page, start = await show(provided, str(start))
                assert len(page) <= 2
                entries += page
            arrivals = [NOW, NOW, NOW, NOW + 50, NOW + 50]
            assert entries == [Entry(i, shards[i].root, 100 + i, arrivals[i]) for i in (0, 2, 3, 4)]

    asyncio.run(scenario())


def test_only_the_client_of_the_lease_may_ask_and_only_for_a_position(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as provided:
            with pytest.raises(WrongSignature):
                await show(provided, "0", STRANGER)
            with pytest.raises(MalformedMessage):
                await show(provided, str(2**32))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "data",
    [
        None,
        {"entries": []},
        {"entries": [[0, "00" * 31, 1, 1]], "next": None},
        {"entries": [[4, "00" * 32, 1, 1]], "next": None},
        {"entries": [[6, "00" * 32, 1, 1], [6, "00" * 32, 1, 1]], "next": None},
        {"entries": [[6, "00" * 32, -1, 1]], "next": None},
        {"entries": [[6, "00" * 32, 1, 1.5]], "next": None},
        {"entries": [[6, "00" * 32, 1]], "next": None},
        {"entries": [[6, "00" * 32, 1, 1]], "next": 6},
        {"entries": [], "next": 9},
    ],
)
def test_a_node_cannot_send_a_client_round_in_circles(data: Any) -> None:
    with pytest.raises(MalformedMessage):
        parse_page(json.dumps({"data": data}).encode(), 5)
