"""The benchmarks' programs: small WebAssembly modules for WASI preview 1, as text.

Each reads 48 bytes (six little-endian 64-bit words: seed, segments, rounds of a segment, and a state of three words),
goes through its segments, and writes the state after each: 24 bytes a segment. So any segment can be run again alone,
from the state before it, and one drawn by lot costs a sixteenth of the whole.

    cpu     a round: xorshift (Marsaglia 2003, 13-7-17), a square root of a sum, and both mixed into the result
    memory  words filled by a chain that has no short cut known to us, then a walk in which each step's place depends
            on the word found at the last, as in scrypt's ROMix (RFC 7914, section 5)
    disk    a round: 64 KiB drawn and written; at the segment's end all is synced, read back and mixed

Invariant: what is written depends on the 48 bytes alone. All floats are IEEE 754 sums, products by powers of two and
square roots, which are exact to the bit everywhere.
"""

from __future__ import annotations

from functools import cache

MEMORY_WORDS = 2**23  # 64 MiB
BLOCK = 65_536  # bytes that the disk's program writes at once

_PRELUDE = """
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
"""

# 0: the 48 bytes; 64: the state as it is written; 96: pointer, length and count for the host's calls.
_COMMON = """
  (func $check (param $failed i32) (if (local.get $failed) (then unreachable)))
  (func $read_all (param $fd i32) (param $at i32) (param $left i32)
    (loop $more
      (i32.store (i32.const 96) (local.get $at))
      (i32.store (i32.const 100) (local.get $left))
      (call $check (call $fd_read (local.get $fd) (i32.const 96) (i32.const 1) (i32.const 104)))
      (call $check (i32.eqz (i32.load (i32.const 104))))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 104))))
      (local.set $left (i32.sub (local.get $left) (i32.load (i32.const 104))))
      (br_if $more (local.get $left))))
  (func $write_all (param $fd i32) (param $at i32) (param $left i32)
    (loop $more
      (i32.store (i32.const 96) (local.get $at))
      (i32.store (i32.const 100) (local.get $left))
      (call $check (call $fd_write (local.get $fd) (i32.const 96) (i32.const 1) (i32.const 104)))
      (call $check (i32.eqz (i32.load (i32.const 104))))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 104))))
      (local.set $left (i32.sub (local.get $left) (i32.load (i32.const 104))))
      (br_if $more (local.get $left))))
  (func (export "_start") (local $segments i64) (local $x i64) (local $y i64) (local $z i64)
    (call $read_all (i32.const 0) (i32.const 0) (i32.const 48))
    (memory.copy (i32.const 64) (i32.const 24) (i32.const 24))
    (call $begin (i64.load (i32.const 0)))
    (local.set $segments (i64.load (i32.const 8)))
    (loop $next
      (call $segment (i64.load (i32.const 16))
        (i64.load (i32.const 64)) (i64.load (i32.const 72)) (i64.load (i32.const 80)))
      (local.set $z) (local.set $y) (local.set $x)
      (i64.store (i32.const 64) (local.get $x))
      (i64.store (i32.const 72) (local.get $y))
      (i64.store (i32.const 80) (local.get $z))
      (call $write_all (i32.const 1) (i32.const 64) (i32.const 24))
      (br_if $next (i64.ne (local.tee $segments (i64.sub (local.get $segments) (i64.const 1))) (i64.const 0))))
    (call $end))
"""

_CPU = """
  (memory (export "memory") 1)
  (func $begin (param i64))
  (func $end)
  (func $segment (param $rounds i64) (param $x i64) (param $y i64) (param $z i64) (result i64 i64 i64) (local $f f64)
    (local.set $f (f64.reinterpret_i64 (local.get $y)))
    (loop $next
      (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 13))))
      (local.set $x (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 7))))
      (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 17))))
      (local.set $f (f64.sqrt (f64.add (local.get $f)
        (f64.mul (f64.convert_i64_u (i64.shr_u (local.get $x) (i64.const 11))) (f64.const 0x1p-53)))))
      (local.set $z (i64.xor
        (i64.mul (i64.add (i64.rotl (local.get $z) (i64.const 5)) (local.get $x)) (i64.const 0x9E3779B97F4A7C15))
        (i64.reinterpret_f64 (local.get $f))))
      (br_if $next (i64.ne (local.tee $rounds (i64.sub (local.get $rounds) (i64.const 1))) (i64.const 0))))
    (local.get $x) (i64.reinterpret_f64 (local.get $f)) (local.get $z))
"""

_MEMORY = """
  (memory (export "memory") {pages})
  (func $begin (param $w i64) (local $at i32) (local $last i32)
    (local.set $at (i32.const 65536))
    (local.set $last (i32.const {end}))
    (loop $next
      (local.set $w (i64.add (i64.const 0x9E3779B97F4A7C15)
        (i64.mul (i64.xor (local.get $w) (i64.shr_u (local.get $w) (i64.const 29))) (i64.const 0xBF58476D1CE4E5B9))))
      (i64.store (local.get $at) (local.get $w))
      (br_if $next (i32.ne (local.tee $at (i32.add (local.get $at) (i32.const 8))) (local.get $last)))))
  (func $end)
  (func $segment (param $rounds i64) (param $x i64) (param $y i64) (param $z i64) (result i64 i64 i64) (local $w i64)
    (loop $next
      (local.set $w (i64.load offset=65536
        (i32.wrap_i64 (i64.shl (i64.and (local.get $y) (i64.const {mask})) (i64.const 3)))))
      (local.set $x (i64.mul (i64.xor (local.get $x) (local.get $w)) (i64.const 0x9E3779B97F4A7C15)))
      (local.set $x (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 32))))
      (local.set $y (local.get $x))
      (local.set $z (i64.add (i64.rotl (local.get $z) (i64.const 5)) (local.get $w)))
      (br_if $next (i64.ne (local.tee $rounds (i64.sub (local.get $rounds) (i64.const 1))) (i64.const 0))))
    (local.get $x) (local.get $y) (local.get $z))
"""

# The file is made in the first of the folders 3 to 8 where that works, and is gone at the end.
_DISK = f"""
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $path_unlink_file (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $fd_seek (param i32 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_sync" (func $fd_sync (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
  (memory (export "memory") 3)
  (data (i32.const 128) "benchmark")
  (global $folder (mut i32) (i32.const 3))
  (global $file (mut i32) (i32.const 0))
  (func $begin (param i64)
    (loop $next
      (if (call $path_open (global.get $folder) (i32.const 0) (i32.const 128) (i32.const 9) (i32.const 9)
            (i64.const 0x76) (i64.const 0) (i32.const 0) (i32.const 112))
        (then
          (global.set $folder (i32.add (global.get $folder) (i32.const 1)))
          (call $check (i32.gt_u (global.get $folder) (i32.const 8)))
          (br $next))))
    (global.set $file (i32.load (i32.const 112))))
  (func $end
    (call $check (call $fd_close (global.get $file)))
    (call $check (call $path_unlink_file (global.get $folder) (i32.const 128) (i32.const 9))))
  (func $rewind
    (call $check (call $fd_seek (global.get $file) (i64.const 0) (i32.const 0) (i32.const 112))))
  (func $segment (param $rounds i64) (param $x i64) (param $y i64) (param $z i64) (result i64 i64 i64)
    (local $left i64) (local $at i32)
    (call $rewind)
    (local.set $left (local.get $rounds))
    (loop $block
      (local.set $at (i32.const 65536))
      (loop $word
        (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 13))))
        (local.set $x (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 7))))
        (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 17))))
        (i64.store (local.get $at) (local.get $x))
        (br_if $word (i32.ne (local.tee $at (i32.add (local.get $at) (i32.const 8))) (i32.const 131072))))
      (call $write_all (global.get $file) (i32.const 65536) (i32.const {BLOCK}))
      (br_if $block (i64.ne (local.tee $left (i64.sub (local.get $left) (i64.const 1))) (i64.const 0))))
    (call $check (call $fd_sync (global.get $file)))
    (call $rewind)
    (local.set $left (local.get $rounds))
    (loop $block
      (call $read_all (global.get $file) (i32.const 131072) (i32.const {BLOCK}))
      (local.set $at (i32.const 131072))
      (loop $word
        (local.set $z (i64.mul (i64.add (i64.rotl (local.get $z) (i64.const 5)) (i64.load (local.get $at)))
          (i64.const 0x9E3779B97F4A7C15)))
        (br_if $word (i32.ne (local.tee $at (i32.add (local.get $at) (i32.const 8))) (i32.const 196608))))
      (br_if $block (i64.ne (local.tee $left (i64.sub (local.get $left) (i64.const 1))) (i64.const 0))))
    (local.get $x) (i64.add (local.get $y) (local.get $rounds)) (local.get $z))
"""


def get_text(name: str, words: int = MEMORY_WORDS) -> str:
    """A benchmark's program; that for memory walks over `words` of eight bytes, a power of two."""
    memory = _MEMORY.format(pages=1 + words * 8 // 65536, end=65536 + words * 8, mask=words - 1)
    return f"(module{_PRELUDE}{ {'cpu': _CPU, 'memory': memory, 'disk': _DISK}[name] }{_COMMON})"


@cache
def get_program(name: str) -> bytes:
    """The module of a benchmark."""
    import wasmtime

    return bytes(wasmtime.wat2wasm(get_text(name)))
