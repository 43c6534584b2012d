"""fh:// paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.paths import ObjectPath, parse_path
from freehold.protocol.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("fh://demo", ObjectPath("demo")),
        ("fh://demo/", ObjectPath("demo")),
        ("fh://de.mo-1/a", ObjectPath("de.mo-1", "a")),
        ("fh://demo/a/b c/ü", ObjectPath("demo", "a/b c/ü")),
        ("fh://demo/a/", ObjectPath("demo", "a/")),
        ("fh://demo/e\u0301", ObjectPath("demo", "e\u0301")),
        ("fh://demo//a//../b", ObjectPath("demo", "/a//../b")),
        ("fh://demo/" + "a" * 1024, ObjectPath("demo", "a" * 1024)),
    ],
)
def test_what_paths_mean(text: str, path: ObjectPath) -> None:
    assert parse_path(text) == path
    assert parse_path(str(path)) == path


@pytest.mark.parametrize(
    "text",
    [
        "demo/a", "s3://demo/a", "fh://", "fh:///a", "fh://De/a", "fh://ab", "fh://-ab/a", "fh://a..b/a", "fh://ab_c/a",
        "fh://1.2.3.4/a", "fh://demo/" + "a" * 1025, "fh://demo/" + "ü" * 513, "fh://" + "a" * 64, "fh://demo/\ud800",
    ],
)  # fmt: skip
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_path(text)


@given(st.text(max_size=60))
def test_any_text_is_a_path_or_invalid_input(text: str) -> None:
    try:
        path = parse_path(f"fh://demo/{text}")
    except InvalidInput:
        return
    assert parse_path(str(path)) == path
    assert path == ObjectPath("demo", text)
