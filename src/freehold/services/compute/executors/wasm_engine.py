"""The WebAssembly engine: one configuration, under which equal programs cost equal fuel and give equal bytes.

Whatever could tell two machines apart is off or pinned: no threads, no shared or garbage-collected memory, one linear
memory of 32-bit addresses, NaNs canonical, relaxed SIMD in its deterministic form. What an instruction costs is fixed
by the engine's major version; what a call of the host costs, here.

Invariant: what changes a result or its fuel changes `wasm_terms.ENGINE`, what changes compiled code `wasm_terms.CODE`.
"""

from __future__ import annotations

import wasmtime

from freehold.services.compute.executors.wasm_terms import Stop

STACK = 2 * 2**20  # bytes of stack for WebAssembly, within a thread of THREAD_STACK
THREAD_STACK = 16 * 2**20
CALL_FUEL = 4000  # of each call of the host: about what it takes, a nanosecond each
BYTE_FUEL = 1  # of each byte that it moves
SYNC_FUEL = 1_000_000  # of waiting for the disk
STEP_FUEL = 1_000_000  # of each step of a task: about what setting one up takes, however little its program does
TABLE_ELEMENTS, TABLES, INSTANCES = 2**20, 16, 256  # of a store


def build_engine() -> wasmtime.Engine:
    """The engine, as it compiles and as it runs."""
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    config.cranelift_nan_canonicalization = True
    config.wasm_threads = False
    config.shared_memory = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_exceptions = False
    config.wasm_stack_switching = False
    config.wasm_custom_page_sizes = False
    config.wasm_relaxed_simd_deterministic = True
    config.max_wasm_stack = STACK
    return wasmtime.Engine(config)


def build_store(engine: wasmtime.Engine, memory: int, fuel: int) -> wasmtime.Store:
    """A store with at most `memory` bytes in a linear memory, and `fuel`; the engine's next epoch ends its run."""
    store = wasmtime.Store(engine)
    store.set_limits(memory, TABLE_ELEMENTS, INSTANCES, TABLES, INSTANCES)
    store.set_fuel(fuel)
    store.set_epoch_deadline(1)
    return store


class Meter:
    """The fuel of one store: what calls of the host cost, and the nominal time (1 fuel = 1 ns)."""

    def __init__(self, store: wasmtime.Store) -> None:
        self.store = store
        self.began = store.get_fuel()

    def charge_call(self, size: int = 0) -> None:
        """Take what a call that moves `size` bytes costs. Stop ("fuel") where that is more than there is."""
        self._take(CALL_FUEL + size * BYTE_FUEL)

    def charge_bytes(self, size: int) -> None:
        """Take what moving so many bytes costs, in a call that is paid for. Stop ("fuel")."""
        self._take(size * BYTE_FUEL)

    def charge_sync(self) -> None:
        """Take what waiting for the disk costs. Stop ("fuel")."""
        self._take(SYNC_FUEL)

    def charge_step(self) -> None:
        """Take what setting up a step costs. Stop ("fuel")."""
        self._take(STEP_FUEL)

    def taken(self) -> int:
        """Fuel taken since this meter began."""
        return self.began - self.store.get_fuel()

    def _take(self, cost: int) -> None:
        left = self.store.get_fuel()
        if cost > left:
            self.store.set_fuel(0)
            raise Stop("fuel", "it used up what its order allows")
        self.store.set_fuel(left - cost)
