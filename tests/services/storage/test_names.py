"""Names and path keys: round trips, frozen values, and a wrong secret that always says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.errors import InvalidInput, MalformedMessage, WrongPassphrase
from freehold.services.storage import names
from freehold.services.storage.names import PathSecret

SEED = bytes(range(32))
BUCKET = PathSecret.of_bucket(SEED, "demo")
COMPONENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), max_size=60)


@given(st.lists(COMPONENT, max_size=5))
def test_paths_come_back(components: list[str]) -> None:
    path = BUCKET.encrypt_path(components)
    assert BUCKET.decrypt_path(path) == components
    assert path == BUCKET.encrypt_path(components), "the same name each time"


@given(st.lists(COMPONENT, min_size=1, max_size=4), st.binary(min_size=16, max_size=32))
def test_a_wrong_seed_never_gives_garbage(components: list[str], seed: bytes) -> None:
    for wrong in (PathSecret.of_bucket(seed, "demo"), PathSecret.of_bucket(SEED, "demo2"), BUCKET.child("a")):
        if wrong == BUCKET:
            continue
        with pytest.raises(WrongPassphrase):
            wrong.decrypt_path(BUCKET.encrypt_path(components))
        with pytest.raises(WrongPassphrase):
            wrong.unwrap(BUCKET.wrap(bytes(48)))


def test_values_never_change() -> None:
    """Frozen: an old bucket must open for ever."""
    assert (
        BUCKET.encrypt_path(["photos", "a b.jpg"]) == "6vtFoEyDiv8HvS-8praMHyzXa5attoI/fKAwXjeegd4u4_e4f8E4NFdI4wkbo828"
    )
    wrapped = (
        "803cb7b8ca723fd8b0cec70d59df92d7c72cb0b607c03fa2006eca5b46c94b48"
        "d2bc46511c123b7d209c621048c58a48eeb7007729ef45af"
    )
    assert BUCKET.at(["photos", "a b.jpg"]).wrap(bytes(48)).hex() == wrapped
    assert BUCKET.object_key("index").hex() == "3b0a41d688adf7f77c4278d0d1a806ccfb5f0344cdd4f39c66565cdafbe59b9c"
    assert (
        names.segment_context("demo", "x/y", 3).hex()
        == "6a8d2325d9b886da3abc351795069a6de3abc19205eb7a385bfaabad5da3f9ca"
    )


def test_equal_names_under_different_prefixes_look_different() -> None:
    one, other = BUCKET.encrypt_path(["a", "same"]), BUCKET.encrypt_path(["b", "same"])
    assert one.split("/")[1] != other.split("/")[1]


def test_the_parts_of_a_path_do_not_run_together() -> None:
    assert BUCKET.at(["ab"]) != BUCKET.at(["a", "b"])
    assert PathSecret.of_bucket(SEED, "demo").child("x") != PathSecret.of_bucket(SEED, "demox")


def test_a_prefix_can_be_handed_on_without_what_is_above() -> None:
    photos = BUCKET.child("photos")
    assert photos.decrypt_name(BUCKET.encrypt_path(["photos", "cat"]).split("/")[1]) == "cat"
    with pytest.raises(WrongPassphrase):
        photos.decrypt_name(BUCKET.encrypt_name("photos"))


def test_a_component_moved_to_another_depth_does_not_open() -> None:
    first, second = BUCKET.encrypt_path(["a", "b"]).split("/")
    for path in (second, f"{second}/{first}", f"{first}/{first}"):
        with pytest.raises(WrongPassphrase):
            BUCKET.decrypt_path(path)


def test_changed_names_do_not_open() -> None:
    name = BUCKET.encrypt_name("report.pdf")
    flipped = ("B" if name[0] == "A" else "A") + name[1:]
    with pytest.raises(WrongPassphrase):
        BUCKET.decrypt_name(flipped)
    with pytest.raises(WrongPassphrase):
        BUCKET.decrypt_name(name[:8])
    for noise in ("a", "%%%", name + "=", "né"):
        with pytest.raises(MalformedMessage):
            BUCKET.decrypt_name(noise)


@pytest.mark.parametrize("size", [16, 32, 48])
def test_keys_are_wrapped(size: int) -> None:
    secret, keys = BUCKET.child("file"), bytes(range(size))
    wrapped = secret.wrap(keys)
    assert len(wrapped) == size + 8
    assert secret.unwrap(wrapped) == keys
    for damaged in (wrapped[:-1], wrapped[:-8], b"", bytes(len(wrapped)), bytes([wrapped[0] ^ 1]) + wrapped[1:]):
        with pytest.raises(WrongPassphrase):
            secret.unwrap(damaged)


def test_limits() -> None:
    assert BUCKET.decrypt_name(BUCKET.encrypt_name("x" * 1024)) == "x" * 1024
    for name in ("x" * 1025, "\ud800"):
        with pytest.raises(InvalidInput):
            BUCKET.encrypt_name(name)
    with pytest.raises(InvalidInput):
        PathSecret.of_bucket(bytes(15), "demo")
    with pytest.raises(InvalidInput):
        PathSecret(bytes(31))
    with pytest.raises(InvalidInput):
        names.segment_context("demo", "x", -1)


def test_contexts_differ_wherever_their_parts_do() -> None:
    contexts = {
        names.segment_context(bucket, path, index)
        for bucket, path, index in [("a", "bc", 0), ("ab", "c", 0), ("a", "bc", 1), ("", "abc", 0), ("abc", "", 0)]
    }
    assert len(contexts) == 5


def test_secrets_do_not_show() -> None:
    assert repr(BUCKET) == "PathSecret(...)"
    assert len({BUCKET, PathSecret.of_bucket(SEED, "demo"), BUCKET.child("a")}) == 2
