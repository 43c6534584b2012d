"""Primes below a bound: freehold job run examples/primes.py --arg 1000000

Prints how many there are and which is the last. Runs anywhere Python does; as a job it runs inside WebAssembly, on
somebody's machine, and gives the same bytes on each.
"""

import sys


def find_primes(bound):
    """All primes below `bound`, by the sieve of Eratosthenes."""
    is_prime = bytearray([1]) * max(bound, 2)
    is_prime[0:2] = b"\0\0"
    for number in range(2, int(bound**0.5) + 1):
        if is_prime[number]:
            is_prime[number * number :: number] = bytes(len(range(number * number, len(is_prime), number)))
    return [number for number in range(bound) if is_prime[number]]


if len(sys.argv) != 2 or not sys.argv[1].isdigit():
    sys.exit("usage: primes.py BOUND")
primes = find_primes(int(sys.argv[1]))
print(f"{len(primes)} primes below {sys.argv[1]}" + (f", the last is {primes[-1]}" if primes else ""))
