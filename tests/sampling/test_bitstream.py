"""Mixed radix packing: exact size, inverse, prefixes, corrupt payloads."""

import math
import random

import pytest

from ddcm_fast.errors import FormatError
from ddcm_fast.sampling.bitstream import pack, payload_bits, unpack, unpack_prefix

RADICES = {
    "one": [1],
    "bits": [2] * 77,
    "powers": [4096, 8192, 1, 2**32] * 9,
    "odd": [3, 7, 1000, 5**40, 1, 12345],
    "large": [math.comb(16384, 300), 2**300] * 5,
    "chunks": [1000003] * 60000,
    "none": [],
}


@pytest.mark.parametrize("name", RADICES)
def test_round_trip_within_one_byte_of_the_information(name):
    radices = RADICES[name]
    rng = random.Random(name)
    symbols = [rng.randrange(r) for r in radices]
    data = pack(symbols, radices)
    assert unpack(data, radices) == symbols
    assert len(data) == -(-payload_bits(radices) // 8)
    information = sum(math.log2(r) for r in radices)
    assert information - 1e-6 <= 8 * len(data) < information + 8 + information / 2**20


@pytest.mark.parametrize("name", ["bits", "powers", "odd", "large"])
def test_prefix_gives_a_prefix_of_the_symbols(name):
    radices = RADICES[name]
    rng = random.Random(1)
    symbols = [rng.randrange(r) for r in radices]
    data = pack(symbols, radices)
    known = [len(unpack_prefix(data[:n], radices)) for n in range(len(data) + 1)]
    for n in range(len(data) + 1):
        assert unpack_prefix(data[:n], radices) == symbols[: known[n]]
    assert known == sorted(known) and known[-1] == len(symbols)
    # A symbol is known at most a byte after its own information has been read.
    bits = 0.0
    for i, radix in enumerate(radices):
        bits += math.log2(radix)
        enough = min(len(data), math.ceil(bits / 8) + 2)
        assert known[enough] > i


def test_corrupt_payloads():
    radices = [3, 5, 7]
    data = pack([2, 4, 6], radices)
    with pytest.raises(FormatError, match="truncated"):
        unpack(data + b"\0", radices)
    with pytest.raises(FormatError, match="truncated"):
        unpack(b"", radices)
    with pytest.raises(FormatError, match="impossible"):
        unpack(b"\xff", radices)
    with pytest.raises(FormatError, match="padding"):
        unpack(bytes([data[0] | 1]), radices)


def test_symbols_outside_their_radix_are_the_callers_bug():
    with pytest.raises(ValueError, match="radix"):
        pack([3], [3])
    with pytest.raises(ValueError, match="radices"):
        pack([3], [4, 4])
