;; A library beside CPython in the runner: makes what is in memory when the component is snapshotted the same in each
;; build, so that equal versions give equal bytes.
;;
;; CPython starts with a hash seed that it draws; stacks and blocks that are free, and what lies between a value and the
;; end of its block, keep what was there: times, numbers of files, entropy. So before CPython starts its seed is set,
;; and what it allocates, frees and steps over on its stack is cleared, until `steady.scrub()` ends that and clears the
;; rest. Nothing of this is at work in a job.
;;
;; What libraries noted down as they were loaded stands at addresses of componentize-py 0.25.1, and is left alone where
;; it does not look like what it should be.

(module
  (@dylink.0 (mem-info (memory 320 4) (table 5 0)) (needed "libc.so" "libpython3.14.so"))
  (type $malloc (func (param i32 i32) (result i32)))
  (type $realloc (func (param i32 i32 i32) (result i32)))
  (type $free (func (param i32 i32)))
  (import "env" "memory" (memory 0))
  (import "env" "__indirect_function_table" (table 0 funcref))
  (import "env" "__memory_base" (global $base i32))
  (import "env" "__table_base" (global $table i32))
  (import "env" "__stack_pointer" (global $stack (mut i32)))
  (import "GOT.mem" "__stack_chk_guard" (global $guard (mut i32)))
  (import "env" "setenv" (func $setenv (param i32 i32 i32) (result i32)))
  (import "env" "malloc" (func $take (param i32) (result i32)))
  (import "env" "free" (func $give (param i32)))
  (import "env" "malloc_usable_size" (func $size (param i32) (result i32)))
  (import "env" "PyMem_GetAllocator" (func $get_allocator (param i32 i32)))
  (import "env" "PyMem_SetAllocator" (func $set_allocator (param i32 i32)))
  (import "env" "PyModuleDef_Init" (func $module (param i32) (result i32)))
  (import "env" "PyLong_FromLong" (func $number (param i32) (result i32)))

  ;; 0 names | 64 the allocators of three domains, 20 bytes each | 128 a new one | 200 PyMethodDef[2] | 240 PyModuleDef
  (data (global.get $base) "PYTHONHASHSEED\00\000\00steady\00scrub\00")
  (func $at (param i32) (result i32) (i32.add (global.get $base) (local.get 0)))
  (func $allocator (param $domain i32) (result i32)
    (call $at (i32.add (i32.const 64) (i32.mul (local.get $domain) (i32.const 20)))))

  (func $clear_stack (param $depth i32)
    (memory.fill (i32.sub (global.get $stack) (local.get $depth)) (i32.const 0) (local.get $depth)))

  ;; Clears a block from an offset on, and a part of the stack that is free.
  (func $clear (param $block i32) (param $from i32) (result i32)
    (call $clear_stack (i32.const 8192))
    (if (local.get $block) (then
      (memory.fill (i32.add (local.get $block) (local.get $from)) (i32.const 0)
        (i32.sub (call $size (local.get $block)) (local.get $from)))))
    (local.get $block))

  ;; An allocator around another, whose address is its context: { context, malloc, calloc, realloc, free }.
  (func $new (param $old i32) (param $length i32) (result i32)
    (call $clear
      (call_indirect (type $malloc) (i32.load (local.get $old)) (local.get $length) (i32.load offset=4 (local.get $old)))
      (i32.const 0)))
  (func $new_many (param $old i32) (param $count i32) (param $length i32) (result i32)
    (call $clear
      (call_indirect (type $realloc) (i32.load (local.get $old)) (local.get $count) (local.get $length)
        (i32.load offset=8 (local.get $old)))
      (i32.const 0)))
  (func $again (param $old i32) (param $block i32) (param $length i32) (result i32) (local $before i32)
    (local.set $before (call $size (local.get $block)))
    (local.set $block
      (call_indirect (type $realloc) (i32.load (local.get $old)) (local.get $block) (local.get $length)
        (i32.load offset=12 (local.get $old))))
    (if (local.get $block) (then
      (if (i32.lt_u (local.get $before) (call $size (local.get $block)))
        (then (drop (call $clear (local.get $block) (local.get $before)))))))
    (local.get $block))
  (func $drop (param $old i32) (param $block i32)
    (drop (call $clear (local.get $block) (i32.const 0)))
    (call_indirect (type $free) (i32.load (local.get $old)) (local.get $block) (i32.load offset=16 (local.get $old))))
  (elem (global.get $table) func $new $new_many $again $drop $scrub)

  ;; Before CPython starts.
  (func (export "__wasm_call_ctors") (local $domain i32) (local $new i32)
    (drop (call $setenv (call $at (i32.const 0)) (call $at (i32.const 16)) (i32.const 1)))
    (i32.store (global.get $guard) (i32.const 0x5eed0000)) ;; drawn when libc was loaded, and on the stack since
    (call $clear_stack (i32.const 65536))
    (local.set $new (call $at (i32.const 128)))
    (loop $domains
      (call $get_allocator (local.get $domain) (call $allocator (local.get $domain)))
      (i32.store (local.get $new) (call $allocator (local.get $domain)))
      (i32.store offset=4 (local.get $new) (global.get $table))
      (i32.store offset=8 (local.get $new) (i32.add (global.get $table) (i32.const 1)))
      (i32.store offset=12 (local.get $new) (i32.add (global.get $table) (i32.const 2)))
      (i32.store offset=16 (local.get $new) (i32.add (global.get $table) (i32.const 3)))
      (call $set_allocator (local.get $domain) (local.get $new))
      (br_if $domains (i32.lt_u (local.tee $domain (i32.add (local.get $domain) (i32.const 1))) (i32.const 3)))))

  ;; Takes all blocks that are free, of halving lengths, and gives them back cleared. A length has no more where memory
  ;; had to grow for the last one.
  (func $clear_heap (local $length i32) (local $list i32) (local $block i32) (local $pages i32)
    (local.set $length (i32.const 65536))
    (loop $lengths
      (block $full (loop $more
        (local.set $pages (memory.size))
        (br_if $full (i32.eqz (local.tee $block (call $take (local.get $length)))))
        (drop (call $clear (local.get $block) (i32.const 0)))
        (i32.store (local.get $block) (local.get $list))
        (local.set $list (local.get $block))
        (br_if $more (i32.eq (local.get $pages) (memory.size)))))
      (br_if $lengths (i32.ge_u (local.tee $length (i32.div_u (local.get $length) (i32.const 2))) (i32.const 8))))
    (block $empty (loop $next
      (br_if $empty (i32.eqz (local.tee $block (local.get $list))))
      (local.set $list (i32.load (local.get $block)))
      (i32.store (local.get $block) (i32.const 0))
      (call $give (local.get $block))
      (br $next))))

  ;; mimalloc's heap, which allocates nothing here: a cookie and two keys, then ChaCha20 ("expand 32-byte k", whose
  ;; nonce is its own address) with its key and what it gave. And when the process began: in milliseconds by mimalloc,
  ;; in seconds and nanoseconds by libc.
  (func $clear_notes (local $began i64)
    (if (i32.and (i32.eq (i32.load (i32.const 0x37cd28)) (i32.const 0x61707865))
                 (i32.eq (i32.load (i32.const 0x37cd60)) (i32.const 0x37cd28))) (then
      (memory.fill (i32.const 0x37cd1c) (i32.const 0) (i32.const 12))
      (memory.fill (i32.const 0x37cd38) (i32.const 0) (i32.const 32))
      (memory.fill (i32.const 0x37cd68) (i32.const 0) (i32.const 64))))
    (if (i64.lt_u (i64.load (i32.const 0x43eee8)) (i64.const 1000000000)) (then
      (local.set $began (i64.add (i64.mul (i64.load (i32.const 0x43eee0)) (i64.const 1000))
                                 (i64.div_u (i64.load (i32.const 0x43eee8)) (i64.const 1000000))))
      (if (i64.lt_u (i64.add (i64.sub (i64.load (i32.const 0x400338)) (local.get $began)) (i64.const 1000))
                    (i64.const 2000)) (then
        (i64.store (i32.const 0x400338) (i64.const 0))
        (i64.store (i32.const 0x43eee0) (i64.const 0))
        (i64.store (i32.const 0x43eee8) (i64.const 0)))))))

  ;; steady.scrub(): the stack is the lowest megabyte.
  (func $scrub (param i32 i32) (result i32) (local $domain i32)
    (loop $domains
      (call $set_allocator (local.get $domain) (call $allocator (local.get $domain)))
      (br_if $domains (i32.lt_u (local.tee $domain (i32.add (local.get $domain) (i32.const 1))) (i32.const 3))))
    (call $clear_heap)
    (call $clear_notes)
    (call $clear_stack (i32.sub (global.get $stack) (i32.const 16)))
    (call $number (i32.const 0)))

  (func (export "PyInit_steady") (result i32)
    (i32.store (call $at (i32.const 200)) (call $at (i32.const 25)))
    (i32.store (call $at (i32.const 204)) (i32.add (global.get $table) (i32.const 4)))
    (i32.store (call $at (i32.const 208)) (i32.const 4)) ;; METH_NOARGS
    (i32.store (call $at (i32.const 240)) (i32.const 1))
    (i32.store (call $at (i32.const 260)) (call $at (i32.const 18)))
    (i32.store (call $at (i32.const 272)) (call $at (i32.const 200)))
    (call $module (call $at (i32.const 240)))))
