"""Heads at real nodes over real HTTP: three of seven stop, another machine finds everything, bad input is refused."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from freehold.client.heads import Head
from freehold.client.node_heads import NodeHeads
from freehold.client.sdk import Freehold
from freehold.protocol.errors import Conflict, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.units import Hash
from freehold.services.storage.client_seats import StorageSeats
from freehold.services.storage.register_values import (
    CONTROL,
    Ballot,
    Known,
    Place,
    ask_promise,
    make_value,
    propose,
    whole,
)
from tests.client.world import DOMAIN, World, key, world

NAME = "0123456789abcdef" * 2


def heads_of(client: Freehold) -> NodeHeads:
    storage: Any = client.storage
    seats = StorageSeats(storage._context, storage, storage._sessions)
    return NodeHeads(client.account.key, DOMAIN, seats)


def test_three_of_seven_stop_and_another_machine_finds_the_head(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, nodes=7) as made:
            frames = (bytes(20_000), b"second")
            async with made.client() as client:
                heads = heads_of(client)
                await heads.compare_and_set(NAME, None, Head(1, b"base"))
                await heads.compare_and_set(NAME, Head(1, b"base"), Head(2, b"base", frames[:1]))
                for node in made.node[:3]:
                    await node.stop()
                assert await heads.read(NAME) == Head(2, b"base", frames[:1])
                await heads.compare_and_set(NAME, Head(2, b"base", frames[:1]), Head(3, b"base", frames))
                with pytest.raises(Conflict):
                    await heads.compare_and_set(NAME, Head(1, b"base"), Head(2, b"other"))
            async with made.client(home="another") as client:
                heads = heads_of(client)
                assert await heads.read(NAME) == Head(3, b"base", frames)
                await heads.compare_and_set(NAME, Head(3, b"base", frames), Head(4, b"new base", frames[1:]))
                await made.node[6].stop()
                with pytest.raises(Unavailable):
                    await heads.read(NAME)
            async with made.client(1, home="a stranger") as client:
                with pytest.raises(Unavailable):  # four are silent: they may hold what is not known here
                    await heads_of(client).read(NAME)
            for node in made.node[:3]:
                await node.start()
            async with made.client(home="a third") as client:
                assert await heads_of(client).read(NAME) == Head(4, b"new base", frames[1:])
            async with made.client(1, home="a stranger") as client:
                assert await heads_of(client).read(NAME) is None

    asyncio.run(scenario())


async def _post(made: World, path: str, body: bytes) -> tuple[int, Any]:
    url, data = made.node[0].url + path, io.BytesIO(body)
    async with aiohttp.ClientSession() as session, session.post(url, data=data) as response:
        if response.status == 200:
            return 200, msgspec.msgpack.decode(await response.read())
        return response.status, (await response.json())["errors"][0]["code"]


def test_bad_input_is_refused_by_its_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, nodes=1) as made, made.client() as client:
            heads = heads_of(client)
            await heads.compare_and_set(NAME, None, Head(1, b"base"))
            opened: Any = heads._opened
            owner = client.account.key
            lease = await opened.acceptors[0]._lease()
            place = Place(owner.address, opened.group, bytes.fromhex(NAME))
            base = f"/v1/storage/registers/{owner.address}/{opened.group}"
            at = Ballot(1000, b"proposer")

            def proposal(signer: Key = owner, ballot: Ballot = at, **changes: Any) -> bytes:
                value = make_value(None, b"base", (), b"w" * 8, False)
                made = msgspec.structs.replace(propose(signer, DOMAIN, place, ballot, value), part=whole(value))
                return msgspec.msgpack.encode(msgspec.structs.replace(made, **changes))

            def prepare(signer: Key = owner, ballot: Ballot = at) -> bytes:
                return msgspec.msgpack.encode(ask_promise(signer, DOMAIN, place, ballot, Known()))

            stranger, query = key("stranger"), f"?lease={lease}"
            accept, ask = f"{base}/{NAME}/accept", f"{base}/{NAME}/prepare"
            before = await heads.read(NAME)
            for path, body, expected in (
                (accept + query, proposal(stranger), (401, "wrong_signature")),
                (ask + query, prepare(stranger), (401, "wrong_signature")),
                (accept + query, proposal(version=2), (401, "wrong_signature")),
                (accept + query, proposal(part=None), (400, "invalid_input")),
                (accept + query, b"\xc1garbage", (400, "malformed_message")),
                (ask + query, b"", (400, "malformed_message")),
                (ask + query, bytes(2000), (413, "body_too_large")),
                (accept + query, bytes(5 << 20), (402, "insufficient_credits")),
                (accept, proposal(), (400, "malformed_message")),
                (f"{accept}?lease={Hash(bytes(32))}", proposal(), (404, "not_found")),
                (f"{base}/{NAME.upper()}/prepare{query}", prepare(), (400, "malformed_message")),
                (f"{base}/{CONTROL.hex()}/accept{query}", proposal(), (401, "wrong_signature")),
            ):
                found = await _post(made, path, body)
                if expected[0] == 402:  # whichever limit comes first
                    assert found[0] in (402, 413), found
                else:
                    assert found == expected, (path, found)
            assert (await _post(made, ask + query, prepare(ballot=Ballot(1, b"proposer"))))[1][0] == "stale"
            assert (await _post(made, accept + query, proposal(ballot=Ballot(1, b"proposer"))))[1][0] == "stale"
            assert await heads.read(NAME) == before

    asyncio.run(scenario())
