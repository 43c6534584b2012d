"""Stubs in a component, sorted: whatever order they came in, the bytes are the same and mean the same."""

from __future__ import annotations

import itertools

import pytest
import wasmtime
from wasmtime import component

from freehold.services.compute.component_stubs import INSTANCES, MODULE, read_sections, sort_stubs

# Names and parameters of functions, by the interface that a stub stands in for. The last two are alike.
INTERFACES = {
    "clock": [("now", ""), ("resolution", "(param i32)")],
    "random": [("get", "(param i64)"), ("drop", "(param i32 i32)"), ("seed", "")],
    "stdin": [("open", "(result i32)")],
    "stdout": [("open", "(result i32)")],
}
USED = [("random", "drop"), ("stdout", "open"), ("clock", "now"), ("stdin", "open"), ("random", "seed")]


def build(order: tuple[str, ...], *, backwards: bool) -> bytes:
    """A component whose main module imports what the stubs export."""
    kinds = {(interface, name): kind for interface, functions in INTERFACES.items() for name, kind in functions}
    modules = []
    for interface in order:
        functions = INTERFACES[interface][:: -1 if backwards else 1]
        modules.append("(core module " + "".join(f'(func (export "{n}") {k} unreachable)' for n, k in functions) + ")")
    imports = "".join(f'(import "{i}" "{n}" (func {kinds[i, n]}))' for i, n in USED)
    instances = "".join(f"(core instance (instantiate {number}))" for number in range(len(order)))
    given = "".join(f'(with "{interface}" (instance {order.index(interface)}))' for interface in INTERFACES)
    aliases = "".join(f'(alias core export {order.index(i)} "{n}" (core func))' for i, n in USED)
    shown = "".join(f'(export "{i}-{n}" (func {number}))' for number, (i, n) in enumerate(USED))
    return bytes(
        wasmtime.wat2wasm(
            f'(component {"".join(modules)} (core module {imports} (func (export "run"))) {instances} {aliases}'
            f"(core instance (instantiate {len(order)} {given})) (core instance {shown}))"
        )
    )


@pytest.mark.parametrize("backwards", [False, True])
def test_any_order_gives_the_same_bytes(backwards: bool) -> None:
    expected = sort_stubs(build(tuple(INTERFACES), backwards=False))
    config = wasmtime.Config()
    config.wasm_component_model = True
    component.Component(wasmtime.Engine(config), expected)  # it checks that each import gets what it asks for
    assert sort_stubs(expected) == expected
    for order in itertools.permutations(INTERFACES):
        built = build(order, backwards=backwards)
        assert sort_stubs(built) == expected


def test_what_is_no_stub_stays_where_it_is() -> None:
    source = """(component (core module (func (export "z") nop)) (core module (func (export "a") nop))
      (core instance (instantiate 0)) (core instance (instantiate 1)))"""
    built = bytes(wasmtime.wat2wasm(source))
    assert sort_stubs(built) == built


def test_a_stub_that_is_used_twice_stays_where_it_is() -> None:
    source = """(component (core module (func (export "z") unreachable)) (core module (func (export "a") unreachable))
      (core instance (instantiate 0)) (core instance (instantiate 0)) (core instance (instantiate 1)))"""
    built = bytes(wasmtime.wat2wasm(source))
    assert sort_stubs(built) == built
    assert [one.kind for one in read_sections(built)].count(MODULE) == 2
    assert INSTANCES in [one.kind for one in read_sections(built)]
