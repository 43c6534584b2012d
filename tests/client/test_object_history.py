"""The judge of recorded histories must find what is planted in them, and let pass what can have happened."""

from __future__ import annotations

import random

import pytest

from tests.client.history import ANY, CONFLICT, OK, UNKNOWN
from tests.client.object_history import History

KEYS = ("a", "b")


def make(*events: tuple[object, ...]) -> History:
    """(kind, start, end, ...): put key etag | create key etag | replace key expected etag | delete key | get | list."""
    history = History(KEYS)
    for kind, start, end, *rest in events:
        what = str(kind)
        outcome = {"!": CONFLICT, "?": UNKNOWN}.get(what[-1], OK)
        match what.rstrip("!?"):
            case "put":
                history.change(rest[0], start, end, outcome, ANY, rest[1])  # type: ignore[arg-type]
            case "create":
                history.change(rest[0], start, end, outcome, None, rest[1])  # type: ignore[arg-type]
            case "replace":
                history.change(rest[0], start, end, outcome, rest[1], rest[2])  # type: ignore[arg-type]
            case "delete":
                history.change(rest[0], start, end, outcome, ANY, None)  # type: ignore[arg-type]
            case "get":
                history.read(rest[0], start, end, rest[1])  # type: ignore[arg-type]
            case "list":
                history.list(start, end, rest[0])  # type: ignore[arg-type]
    return history


POSSIBLE = {
    "a read beside a put sees either": [("put", 0, 4, "a", "x"), ("get", 1, 2, "a", None), ("get", 2.5, 3, "a", "x")],
    "an unknown put comes late": [("put?", 0, 1, "a", "x"), ("get", 2, 3, "a", None), ("get", 4, 5, "a", "x")],
    "an unknown put never comes": [("put?", 0, 1, "a", "x"), ("get", 2, 3, "a", None), ("create", 4, 5, "a", "y")],
    "a refusal that an unknown put explains": [("put?", 0, 1, "a", "x"), ("create!", 2, 3, "a", "y")],
    "one of two creations": [("create", 0, 2, "a", "x"), ("create!", 1, 3, "a", "y"), ("get", 4, 5, "a", "x")],
    "a replacement after another": [
        ("put", 0, 1, "a", "x"),
        ("replace", 2, 4, "a", "x", "y"),
        ("replace!", 2, 4, "a", "x", "z"),
        ("get", 5, 6, "a", "y"),
    ],
    "a list beside a delete": [("put", 0, 1, "a", "x"), ("delete", 2, 5, "a"), ("list", 3, 4, {"a": "x"})],
    "a list of what is there": [
        ("put", 0, 1, "a", "x"),
        ("put", 0, 1, "b", "y"),
        ("list", 2, 3, {"a": "x", "b": "y"}),
    ],
}
IMPOSSIBLE = {
    "a stale read": [("put", 0, 1, "a", "x"), ("put", 2, 3, "a", "y"), ("get", 4, 5, "a", "x")],
    "a read that goes back": [("put", 0, 9, "a", "x"), ("get", 1, 2, "a", "x"), ("get", 3, 4, "a", None)],
    "an acknowledged put that is lost": [("put", 0, 1, "a", "x"), ("get", 2, 3, "a", None)],
    "a lost update": [
        ("put", 0, 1, "a", "x"),
        ("replace", 2, 4, "a", "x", "y"),
        ("replace", 2, 4, "a", "x", "z"),
    ],
    "two creations": [("create", 0, 2, "a", "x"), ("create", 1, 3, "a", "y")],
    "a refusal without a reason": [("create!", 0, 1, "a", "x")],
    "a refused put that is there": [
        ("put", 0, 1, "a", "x"),
        ("create!", 2, 3, "a", "y"),
        ("get", 4, 5, "a", "y"),
    ],
    "a deleted object that is read": [("put", 0, 1, "a", "x"), ("delete", 2, 3, "a"), ("get", 4, 5, "a", "x")],
    "a list that misses a key": [("put", 0, 1, "a", "x"), ("put", 0, 1, "b", "y"), ("list", 2, 3, {"b": "y"})],
    "a list with what was deleted": [("put", 0, 1, "a", "x"), ("delete", 2, 3, "a"), ("list", 4, 5, {"a": "x"})],
    "a list of an older object": [("put", 0, 1, "a", "x"), ("put", 2, 3, "a", "y"), ("list", 4, 5, {"a": "x"})],
    "an unknown put that comes and goes": [
        ("put?", 0, 1, "a", "x"),
        ("get", 2, 3, "a", "x"),
        ("get", 4, 5, "a", None),
    ],
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_what_can_have_happened_passes(name: str) -> None:
    assert make(*POSSIBLE[name]).impossible() == {}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_have_happened_is_found(name: str) -> None:
    assert list(make(*IMPOSSIBLE[name]).impossible()) == ["a"]


def run(seed: int) -> History:
    """Calls on one real register, which takes them in turn."""
    draw, history, held = random.Random(seed), History(("a",)), None
    for number in range(300):
        start, end = number - draw.uniform(0, 2), number + draw.uniform(0, 2)
        value = f"v{number}"
        if number % 25 == 0:
            history.change("a", start, end, UNKNOWN, ANY, f"unknown {value}")
            held = f"unknown {value}" if draw.random() < 0.5 else held
        match draw.choice(("put", "create", "replace", "delete", "get", "get", "get")):
            case "put":
                history.change("a", start, end, OK, ANY, value)
                held = value
            case "create":
                history.change("a", start, end, CONFLICT if held else OK, None, value)
                held = held or value
            case "replace":
                expected = held if draw.random() < 0.5 and held else "other"
                history.change("a", start, end, OK if expected == held else CONFLICT, expected, value)
                held = value if expected == held else held
            case "delete":
                history.change("a", start, end, OK, ANY, None)
                held = None
            case _:
                history.read("a", start, end, held)
    return history


@pytest.mark.parametrize("seed", range(5))
def test_long_histories_of_a_real_register_pass_until_one_put_is_lost(seed: int) -> None:
    history = run(seed)
    assert history.impossible() == {}
    history.change("a", 400, 401, OK, ANY, "lost")
    history.read("a", 402, 403, None)
    assert list(history.impossible()) == ["a"]
