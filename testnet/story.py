"""What is done on the network, and what must be true after each step. Read from top to bottom, it is the transcript.

Invariant: a line that begins with `ok` was checked just now, against the chain or with the real command line; the first
check that fails ends the story with CheckFailed.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from freehold.chain.contracts import Ledger, Oracle, Token
from freehold.chain.contracts.oracle import ReportAccepted
from freehold.chain.errors import ChainError
from freehold.chain.follower import Event, Follower
from freehold.chain.rpc import Rpc
from freehold.local.supervisor import Say
from freehold.market.network import Network
from freehold.net.client import Dial
from freehold.protocol.errors import FreeholdError
from freehold.protocol.units import ONE
from testnet.genesis import compute_majority
from testnet.network import PERIOD, RealNetwork

SIZE = 8 * 2**20  # bytes of the file that is stored
SLOW = float(os.environ.get("FREEHOLD_TEST_SLOW", "1"))
DEADLINE = 240.0 * SLOW  # seconds for any one thing that is waited for
POLL = 0.25
# The member that prefers the killed validator lives on: then all who are left must sign, and it does by its other ends.
KILLED_VALIDATOR, KILLED_MEMBER, CUT_OFF = 2, "member-3", "member-2"
FIRST, DOWN, AFTER = 3, 3, 2  # epochs before the kills, with both dead, after both are back


class CheckFailed(FreeholdError):
    """What was to be true is not."""

    code = "check_failed"


class Story:
    """One run. `say` takes the transcript's lines."""

    def __init__(self, network: RealNetwork, home: Path, say: Say) -> None:
        self.network, self.home, self.say = network, home, say
        self.validators = network.validators
        self.epochs: dict[int, ReportAccepted] = {}
        self._stack = AsyncExitStack()

    async def run(self) -> None:
        """The whole of it. CheckFailed, or the error of what could not even be asked."""
        async with self._stack:
            self.rpcs = {
                v.name: await self._stack.enter_async_context(Rpc(v.url, chain_id=self.validators.chain_id))
                for v in self.validators.all
            }
            self.rpc = self.rpcs[self.validators[1].name]
            self.dial = await self._stack.enter_async_context(Dial())
            self.ledger = Ledger(self.rpc, self.deployed.contracts["ledger"])
            await self.check_consensus()
            await self.check_deployment()
            self.watching = asyncio.create_task(self.watch_epochs())
            try:
                await self.tell()
            finally:
                self.watching.cancel()
                await asyncio.gather(self.watching, return_exceptions=True)

    async def tell(self) -> None:
        """What is done to the network, in order."""
        before = await self.store("before.bin")
        await self.wait_epochs(FIRST)
        killed_in = await self.kill()
        meanwhile = await self.store("meanwhile.bin")
        await self.check_settled_without(killed_in)
        await self.restart()
        await self.wait_epochs(AFTER)
        await self.fetch("before.bin", before)
        await self.fetch("meanwhile.bin", meanwhile)
        await self.claim("operator-1")
        await self.replay(killed_in)
        await self.check_agreement()

    # --- the chain and the contracts

    async def check_consensus(self) -> None:
        """Blocks are made in turn, by all."""
        count, majority = len(self.validators.all), compute_majority(len(self.validators.all))
        await self.wait_for(self.fewest_peers, lambda n: n == count - 1, "all are connected")
        self.check(True, f"{count} validators, each connected to the {count - 1} others")
        head = await self.wait_for(self.rpc.block_number, lambda n: n >= 3 * count, "blocks are made")
        signers = await self.validators.read_signers(self.rpc, 1, head)
        blocks = Counter(self.validators.name_of(signer) for signer in signers)
        self.check(len(blocks) == count, f"blocks 1 to {head} are signed by all of them: {describe(blocks)}")
        windows = [signers[i : i + majority] for i in range(len(signers) - majority + 1)]
        self.check(
            all(len(set(window)) == majority for window in windows),
            f"any {majority} consecutive blocks have {majority} different signers, more than half of {count}; "
            f"so a block is final {majority} blocks later",
        )

    async def check_deployment(self) -> None:
        """Every validator has the same contracts; every member asks a validator of its own."""
        network = self.deployed
        codes = set()
        for rpc in self.rpcs.values():
            codes.add(tuple([await rpc.code(address) for address in network.contracts.values()]))
        self.check(
            len(codes) == 1 and all(codes.pop()),
            f"{len(network.contracts)} contracts, in block {network.deployment_block}, the same on every validator",
        )
        asked = {p.name: self.network.validator_of(p).name for p in self.network.members}
        self.check(
            len(set(asked.values())) == len(asked),
            "each member prefers a validator of its own, with two more behind it: "
            + ", ".join(f"{member} {validator}" for member, validator in asked.items()),
        )

    # --- epochs

    async def watch_epochs(self) -> None:
        """Tell of each report as its block becomes final at validator 1."""
        network = self.deployed
        oracle = Oracle(self.rpc, network.contracts["oracle"])
        follower = Follower(self.rpc, [oracle], finality_depth=network.parameters.finality_depth, interval=POLL)
        async for batch in follower.run(network.deployment_block):
            for event in batch.events:
                if isinstance(event.value, ReportAccepted):
                    self.tell_epoch(event.value, event)

    def tell_epoch(self, accepted: ReportAccepted, event: Event) -> None:
        report = accepted.report
        self.say(
            f"     epoch {accepted.epoch}: report {str(accepted.report_hash)[:12]} in block {event.block_number}, "
            f"signed by {', '.join(self.signers_of(accepted))}; "
            f"earned so far {report.tokens_earned / ONE:.4f}, spent {report.credits_spent / ONE:.4f}"
        )
        self.epochs[accepted.epoch] = accepted

    def signers_of(self, accepted: ReportAccepted) -> list[str]:
        return [p.name for i, p in enumerate(self.network.members) if accepted.bitmap >> i & 1]

    @property
    def final_epoch(self) -> int:
        return max(self.epochs, default=0)

    async def wait_epochs(self, count: int) -> None:
        """Until `count` more epochs are settled for good."""
        wanted = self.final_epoch + count
        deadline = DEADLINE * count
        await self.wait_for(self.read_final_epoch, lambda n: n >= wanted, f"epoch {wanted} is settled", deadline)
        self.check(set(range(1, wanted + 1)) <= self.epochs.keys(), f"epochs 1 to {wanted} are settled, none left out")

    async def read_final_epoch(self) -> int:
        """For those who wait for it: also raises what ended the watch, such as a reorg of final blocks."""
        if self.watching.done():
            self.watching.result()
        return self.final_epoch

    # --- faults

    async def kill(self) -> int:
        """SIGKILL to a validator and a member between two reports; the epoch it happened in."""
        before = self.final_epoch
        await self.wait_for(self.read_final_epoch, lambda n: n > before, "the next epoch opens")
        opened = await self.rpc.block_number()
        await self.wait_for(self.rpc.block_number, lambda n: n > opened, "a block of it")
        posted = await self.ledger.posted_epoch()
        self.check(posted == before + 1, f"epoch {posted} is reported and epoch {posted + 1} is open")
        validator = self.validators[KILLED_VALIDATOR]
        self.say(f"kill -9 {await validator.kill()}    # {validator.name}")
        self.say(f"kill -9 {await self.network.kill(KILLED_MEMBER)}    # {KILLED_MEMBER}")
        running = self.network.pids()
        self.check(not {validator.name, KILLED_MEMBER} & running.keys(), f"{len(running)} processes are left")
        return posted + 1

    async def check_settled_without(self, killed_in: int) -> None:
        """The chain and the epochs went on, without the signatures of the dead."""
        dead = self.validators[KILLED_VALIDATOR]
        at = await self.rpc.block_number()
        await self.wait_epochs(DOWN)
        head = await self.rpc.block_number()
        signers = await self.validators.read_signers(self.rpc, at, head)
        blocks = Counter(self.validators.name_of(signer) for signer in signers)
        self.check(dead.name not in blocks, f"blocks {at} to {head} without {dead.name}: {describe(blocks)}")
        settled = range(killed_in, killed_in + DOWN)
        signed = [set(self.signers_of(self.epochs[epoch])) for epoch in settled]
        self.check(
            all(KILLED_MEMBER not in names and CUT_OFF in names for names in signed),
            f"epochs {settled[0]} to {settled[-1]} are signed by all that live: without {KILLED_MEMBER}, and with "
            f"{CUT_OFF}, whose own validator is dead",
        )

    async def restart(self) -> None:
        """Both come back, with what they had on disk, and catch up."""
        validator = self.validators[KILLED_VALIDATOR]
        self.say(f"starting {validator.name} and {KILLED_MEMBER} again")
        began = time.monotonic()
        await self.validators.start_one(validator)
        mine = self.rpcs[validator.name]
        head = await self.rpc.block_number()
        await self.wait_for(mine.block_number, lambda n: n >= head, f"{validator.name} catches up")
        self.check(
            await mine.header(head) == await self.rpc.header(head),
            f"{validator.name} has block {head} after {time.monotonic() - began:.1f} s, the same as the others",
        )
        began = time.monotonic()
        await self.network.start_again(KILLED_MEMBER)
        epoch = self.final_epoch
        await self.wait_for(lambda: self.committed(KILLED_MEMBER), lambda n: n >= epoch, "the member catches up")
        self.check(True, f"{KILLED_MEMBER} has committed epoch {epoch} after {time.monotonic() - began:.1f} s")
        signed = await self.wait_for(
            lambda: self.last_signed(validator.name, head), lambda n: n > 0, f"{validator.name} signs again"
        )
        self.check(True, f"{validator.name} signs again: block {signed}")

    async def committed(self, member: str) -> int:
        """The last epoch that a member has committed and is ready after; 0 while it is not."""
        try:
            answer = await self.dial.peer(self.network.urls[member]).get_json("/v1/status")
        except FreeholdError:
            return 0
        report = answer["last_report"]
        return int(report["epoch"]) if report and answer["ready"] else 0

    async def last_signed(self, name: str, after: int) -> int:
        """The number of the newest block after `after` that this validator signed; 0 if none."""
        head = await self.rpc.block_number()
        if head <= after:
            return 0
        signers = await self.validators.read_signers(self.rpc, after + 1, head)
        own = [after + 1 + i for i, signer in enumerate(signers) if self.validators.name_of(signer) == name]
        return own[-1] if own else 0

    # --- what a user does

    async def store(self, name: str) -> str:
        """Put a file of random bytes in; its SHA-256."""
        path = self.home / name
        data = os.urandom(SIZE)
        await asyncio.to_thread(path.write_bytes, data)
        await self.command("cp", str(path), f"fh://demo/{name}", "--yes")
        digest = hashlib.sha256(data).hexdigest()
        self.check(True, f"{name}, {SIZE} bytes, SHA-256 {digest[:16]}, is stored: a quorum holds its evidence")
        return digest

    async def fetch(self, name: str, digest: str) -> None:
        """Get it back."""
        back = self.home / f"{name}.back"
        await self.command("cp", f"fh://demo/{name}", str(back), "--yes")
        found = hashlib.sha256(await asyncio.to_thread(back.read_bytes)).hexdigest()
        self.check(found == digest, f"{name} is back, SHA-256 {found[:16]}: identical")

    async def claim(self, operator: str) -> None:
        """An operator's earnings arrive as tokens."""
        accounts = self.network.accounts
        assert accounts is not None
        token, address = Token(self.rpc, self.deployed.contracts["token"]), accounts.named()[operator].address
        before = await token.balance_of(address)
        await self.command("claim", "--as", operator)
        after = await self.wait_for(lambda: token.balance_of(address), lambda n: n > before, "the claim arrives")
        self.check(True, f"the token contract shows {(after - before) / ONE:.6f} more for {operator}")

    async def replay(self, epoch: int) -> None:
        """The epoch of the kills, recomputed from its bundle."""
        told = await self.command("epoch", "replay", str(epoch))
        self.check(
            "equals the report that the chain accepted" in told,
            f"epoch {epoch}, in which both were killed, follows from its evidence",
        )

    async def check_agreement(self) -> None:
        """At the end all are level and agree, and no block that counted as final was replaced."""
        await self.command("status")
        depth = self.deployed.parameters.finality_depth
        final = min([await rpc.block_number() for rpc in self.rpcs.values()]) - depth
        headers = {await rpc.header(final) for rpc in self.rpcs.values()}
        self.check(len(headers) == 1, f"all validators have the same block {final}")
        epoch = self.final_epoch
        await self.wait_for(self.least_committed, lambda n: n >= epoch, "all members are level")
        self.check(True, f"all members have committed epoch {epoch}")
        signers = await self.validators.read_signers(self.rpc, 1, final)
        blocks = Counter(self.validators.name_of(signer) for signer in signers)
        headers_read = [header for header in await self.rpc.headers(1, final) if header is not None]
        longest = max(b.timestamp - a.timestamp for a, b in itertools.pairwise(headers_read))
        self.say(f"     {final} blocks, {PERIOD} s apart, {longest} s at the longest, signed: {describe(blocks)}")
        drops = Counter(drop for v in self.validators.all if not v.killed for drop in v.count_reorgs())
        seen = ", ".join(f"{n} of {drop} block{'s' * (drop > 1)}" for drop, n in sorted(drops.items())) or "none"
        self.check(max(drops, default=0) <= depth, f"changes of branch at the validators that ran on: {seen}")

    # --- means

    @property
    def deployed(self) -> Network:
        """The network file that the deployment gave."""
        assert self.network.network is not None
        return self.network.network

    async def fewest_peers(self) -> int:
        return min([int(await rpc.call("net_peerCount"), 16) for rpc in self.rpcs.values()])

    async def least_committed(self) -> int:
        return min([await self.committed(program.name) for program in self.network.members])

    async def command(self, *arguments: str) -> str:
        """What the real command line prints; CheckFailed unless it ends with 0."""
        shown = " ".join(a.replace(f"{self.home}/", "") for a in arguments)
        self.say(f"$ freehold {shown}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "freehold.cli.main", *arguments, env=self.environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(DEADLINE):
                output, errors = await process.communicate()
        except TimeoutError:
            raise CheckFailed(f"the command did not end within {DEADLINE:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        told = output.decode().replace(f"{self.home}/", "")
        for line in told.splitlines():
            self.say(f"  | {line}")
        if process.returncode:
            raise CheckFailed(f"it ended with code {process.returncode}: {errors.decode().strip()}")
        return told

    @property
    def environment(self) -> dict[str, str]:
        """This process's own, with the settings of this network alone."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FREEHOLD_")}
        return kept | {"FREEHOLD_HOME": str(self.home), "FREEHOLD_CONFIG": str(self.home / "config.toml")}

    def check(self, true: bool, text: str) -> None:
        if not true:
            raise CheckFailed(text)
        self.say(f"ok   {text}")

    async def wait_for(
        self,
        look: Callable[[], Awaitable[int]],
        enough: Callable[[int], bool],
        what: str,
        deadline: float = DEADLINE,
    ) -> int:
        """The first answer that is enough; CheckFailed after `deadline`. Errors of the RPC end are waited out."""
        last: object = "no answer"
        try:
            async with asyncio.timeout(deadline):
                while True:
                    try:
                        answer = await look()
                        if enough(answer):
                            return answer
                        last = answer
                    except ChainError as error:
                        last = error.message
                    await asyncio.sleep(POLL)
        except TimeoutError:
            raise CheckFailed(f"{what}: not within {deadline:g} s, the last answer was {last}") from None


def describe(counts: Counter[str]) -> str:
    """`validator-1 12, validator-2 11`."""
    return ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
