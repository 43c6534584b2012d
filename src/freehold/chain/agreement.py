"""Several RPC ends as one: what they agree on, what they contradict each other in, who is left alone for a while.

With n ends the quorum is n // 2 + 1 (of one: itself; of two: both), so two different answers never both have one.

    ask          any one end; the next one where it fails                 (what is checked elsewhere, or by the chain)
    agree        the answer that a quorum gives; else Disagreement, or ChainError where too few answered
                 (`enough=1`: one answer is enough while nobody contradicts it)
    tell         all ends at once; well if one of them took it
    survey       what each end answers, for numbers that differ for good reasons (heads, fees)

Invariant: the results of one call of any of these come from one end each; views are compared, never mixed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

from freehold.chain.endpoint import Endpoint, is_repeatable
from freehold.chain.errors import BadAnswer, ChainError, Disagreement, Reverted, RpcRefused, WrongChain

log = logging.getLogger(__name__)

T = TypeVar("T")
Calls = Sequence[tuple[str, Sequence[Any]]]
GRACE = 1.0  # seconds that a survey waits for the others once a quorum has answered
LONGEST_WAIT = 5.0  # seconds that one request waits for an end that asked to be left alone


class Said(NamedTuple):
    """An end's answer: what it was read to, or why there is none. A revert is an answer too."""

    endpoint: Endpoint
    value: Any
    error: ChainError | None


class Endpoints:
    """The ends of one chain, in the order of preference."""

    def __init__(
        self, urls: Sequence[str], *, chain_id: int | None, timeout: float, attempts: int, pause: float
    ) -> None:
        self.all = tuple(Endpoint(url, chain_id=chain_id, timeout=timeout) for url in urls)
        self.quorum = len(self.all) // 2 + 1
        self._attempts = attempts
        self._pause = pause

    async def close(self) -> None:
        for endpoint in self.all:
            await endpoint.close()

    async def ask(self, calls: Calls) -> list[Any]:
        """The results from the first end that gives any. A request that must not be repeated is sent once, to one."""
        repeatable = all(is_repeatable(method) for method, _ in calls)
        for attempt in range(self._attempts):
            last = attempt == self._attempts - 1
            try:
                return await self._ask_round(calls, one=not repeatable)
            except (ChainError, WrongChain) as error:
                if not error.retryable or last or not repeatable:
                    raise
                pause = self._pause_after(attempt, error)
            await asyncio.sleep(pause)
        raise ChainError("no attempt was allowed")

    async def _ask_round(self, calls: Calls, *, one: bool) -> list[Any]:
        errors: list[ChainError | WrongChain] = []
        for endpoint in sorted(self.all, key=lambda end: end.rests > 0)[: 1 if one else None]:
            try:
                return await endpoint.request(calls)
            except Reverted:
                raise
            except (ChainError, WrongChain) as error:
                errors.append(error)
        raise next((error for error in errors if error.retryable), errors[0])

    async def agree(
        self, calls: Calls, read: Callable[[list[Any]], T], *, enough: int | None = None, attempts: int | None = None
    ) -> list[T]:
        """Equal readings of at least `enough` ends (None: a quorum), which nobody, or only a minority, contradicts.

        `read` gives something hashable, or raises BadAnswer where the results cannot be. A revert counts as an answer,
        and is raised.
        """
        for attempt in range(attempts or self._attempts):
            try:
                return await self._agree(calls, read, self.quorum if enough is None else enough)
            except (ChainError, WrongChain) as error:
                if not error.retryable or attempt == (attempts or self._attempts) - 1:
                    raise
                pause = self._pause_after(attempt, error)
            await asyncio.sleep(pause)
        raise ChainError("no attempt was allowed")

    async def _agree(self, calls: Calls, read: Callable[[list[Any]], T], enough: int) -> list[T]:
        awake = [end for end in self.all if not end.rests]
        asked = awake if len(awake) >= enough else self.all
        said: list[Said] = []
        groups: dict[Hashable, list[Said]] = {}
        tasks = {asyncio.create_task(_say(end, calls, read)) for end in asked}
        try:
            for done in asyncio.as_completed(tasks):
                answer = await done
                said.append(answer)
                if answer.error is None or isinstance(answer.error, Reverted):
                    group = groups.setdefault(_key(answer), [])
                    group.append(answer)
                    if len(group) >= self.quorum:
                        return self._settle(group, groups)
        finally:
            await _cancel(tasks)
        if len(groups) == 1:
            (group,) = groups.values()
            if len(group) >= enough:
                return self._settle(group, groups)
        raise self._find_fault(said, groups, enough)

    def _settle(self, group: list[Said], groups: dict[Hashable, list[Said]]) -> list[Any]:
        for other in groups.values():
            if other is not group:
                log.info("%s is outvoted: %s", other[0].endpoint.url, _show(other[0]))
        if group[0].error is not None:
            raise group[0].error
        return [answer.value for answer in group]

    def _find_fault(self, said: list[Said], groups: dict[Hashable, list[Said]], enough: int) -> ChainError | WrongChain:
        errors = [answer.error for answer in said if answer.error and not isinstance(answer.error, Reverted)]
        if len(self.all) == 1:
            return errors[0]
        shown = {answer.endpoint.url: _show(answer) for answer in said}
        told = "; ".join(f"{url} says {text}" for url, text in shown.items())
        if len(groups) > 1:
            return Disagreement(f"the RPC ends contradict each other: {told}", answers=shown)
        if not groups and errors and all(isinstance(error, WrongChain) for error in errors):
            return errors[0]
        refused = next((error for error in errors if isinstance(error, RpcRefused)), None)
        if refused is not None:  # it may be the question, say too wide a range
            return refused
        return ChainError(f"{enough} of {len(self.all)} RPC ends must agree: {told}", answers=shown)

    async def survey(self, calls: Calls, read: Callable[[list[Any]], T], *, attempts: int | None = None) -> list[T]:
        """What each end's results read to, from as many ends as answer soon. ChainError where none does."""
        for attempt in range(attempts or self._attempts):
            said = await self._survey(calls, read)
            values = [answer.value for answer in said if answer.error is None]
            if values:
                return values
            fault = self._find_fault(said, {}, 1)
            if not fault.retryable or attempt == (attempts or self._attempts) - 1:
                raise fault
            await asyncio.sleep(self._pause_after(attempt, fault))
        raise ChainError("no attempt was allowed")

    async def _survey(self, calls: Calls, read: Callable[[list[Any]], T]) -> list[Said]:
        asked = [end for end in self.all if not end.rests] or list(self.all)
        tasks = {asyncio.create_task(_say(end, calls, read), name=end.url): end for end in asked}
        try:
            pending = set(tasks)
            done: set[asyncio.Task[Said]] = set()
            while pending and sum(task.result().error is None for task in done) < self.quorum:
                some, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                done |= some
            if pending:
                some, pending = await asyncio.wait(pending, timeout=GRACE)
                done |= some
            for task in pending:
                tasks[task].note_failure(f"{tasks[task].url}: slower than the others by {GRACE:g} s")
            return [task.result() for task in done]
        finally:
            await _cancel(tasks)

    async def tell(self, calls: Calls) -> None:
        """Send the calls to every end, until one has taken them. RpcRefused if all refuse; ChainError."""
        for attempt in range(self._attempts):
            said = await asyncio.gather(*(_say(end, calls, bool) for end in self.all))
            errors = [answer.error for answer in said if answer.error is not None]
            if len(errors) < len(said):
                return
            fault = next((error for error in errors if not isinstance(error, RpcRefused)), errors[0])
            if not fault.retryable or attempt == self._attempts - 1:
                raise fault
            await asyncio.sleep(self._pause_after(attempt, fault))

    def _pause_after(self, attempt: int, error: ChainError | WrongChain) -> float:
        """Seconds until the next attempt: what the end asked for, within reason."""
        asked = float(error.details.get("retry_after", 0.0))
        return max(self._pause * float(2**attempt), min(asked, LONGEST_WAIT))


async def _say(endpoint: Endpoint, calls: Calls, read: Callable[[list[Any]], T]) -> Said:
    try:
        results = await endpoint.request(calls)
        return Said(endpoint, read(results), None)
    except BadAnswer as error:
        endpoint.note_failure(error.message)
        return Said(endpoint, None, _name(error, endpoint))
    except (ChainError, WrongChain) as error:
        return Said(endpoint, None, error)  # type: ignore[arg-type]


def _name(error: BadAnswer, endpoint: Endpoint) -> BadAnswer:
    """The same error, naming the end that it came from."""
    if endpoint.url in error.message:
        return error
    return BadAnswer(f"{endpoint.url}: {error.message}", **error.details)


def _key(answer: Said) -> Hashable:
    if isinstance(answer.error, Reverted):
        return "reverted", answer.error.reason, str(answer.error.details.get("data"))
    value: Hashable = answer.value
    return value


def _show(answer: Said) -> str:
    return answer.error.message if answer.error is not None else f"{answer.value}"[:400]


async def _cancel(tasks: Any) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
