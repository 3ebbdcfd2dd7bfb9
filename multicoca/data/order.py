"""Which sample stands at which position: a pure function of (seed, epoch, position), without state.

A Feistel network over the smallest even number of bits that covers the set is a bijection on its domain;
walking its cycle until the value falls into the set makes it one on the set (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", CT-RSA 2002, section 4). Any position is found at once, so that a run resumes from
its step number alone, on any number of ranks and workers.
"""

from __future__ import annotations

from hashlib import blake2b

_ROUNDS = 4  # enough for a pseudorandom permutation (Luby and Rackoff 1988)


def keyed_number(*key: int | str) -> int:
    """Returns a 64-bit number that depends on every part of the key; equal in every process and version."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def permuted(position: int, size: int, *key: int | str) -> int:
    """Returns where a keyed permutation of range(size) sends a position.

    Raises:
        ValueError: the position is not in range(size).
    """
    if not 0 <= position < size:
        raise ValueError(f"position {position} lies outside a set of {size}")
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low_bits = (1 << half_bits) - 1
    round_keys = [keyed_number(*key, "round", number) for number in range(_ROUNDS)]
    value = position
    while True:
        left, right = value >> half_bits, value & low_bits
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low_bits)
        value = (left << half_bits) | right
        if value < size:
            return value


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
