"""Mixed radix packing: symbols of any radix in ceil(log2 of the product of the radices) bits.

Symbols are written first to last into one integer whose most significant digits are the first
symbols, so a prefix of the bytes fixes a prefix of the symbols. Conversion is by divide and conquer on
Python's integers; radices that are powers of two cost a shift. To keep division from growing
quadratically, the integer is cut after symbols whose product passes 2^20: each such chunk ends on a
whole bit, so a payload of 128 KiB or less is within one bit (plus byte padding) of its information.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ddcm_fast.errors import FormatError

_CHUNK_BITS = 1 << 20
_LEAF = 16


def _chunks(radices: Iterable[int]) -> Iterator[_Tree]:
    """The symbols that share one integer, chunk by chunk; no more radices are taken than the chunks asked for have."""
    own: list[int] = []
    bits = 0
    for radix in radices:
        own.append(radix)
        bits += radix.bit_length()
        if bits >= _CHUNK_BITS:
            yield _Tree(own)
            own, bits = [], 0
    if own:
        yield _Tree(own)


class _Tree:
    """Radices, halved recursively down to a few, and their product."""

    __slots__ = ("count", "left", "product", "radices", "right", "shift")

    def __init__(self, radices: Sequence[int]) -> None:
        self.count = len(radices)
        self.left: _Tree | None = None
        self.right: _Tree | None = None
        self.radices: Sequence[int] = ()
        if self.count <= _LEAF:
            self.radices = radices
            self.product = math.prod(radices)
        else:
            middle = self.count // 2
            self.left, self.right = _Tree(radices[:middle]), _Tree(radices[middle:])
            self.product = self.left.product * self.right.product
        power_of_two = self.product & (self.product - 1) == 0
        self.shift = self.product.bit_length() - 1 if power_of_two else None

    @property
    def bits(self) -> int:
        """Bits of one number below the product: ceil(log2(product))."""
        return (self.product - 1).bit_length()

    def join(self, symbols: Sequence[int], first: int) -> int:
        """The number of the symbols from `first` on."""
        if self.left is None or self.right is None:
            value = 0
            for i, radix in enumerate(self.radices, first):
                value = value * radix + symbols[i]
            return value
        high = self.left.join(symbols, first)
        low = self.right.join(symbols, first + self.left.count)
        if self.right.shift is not None:
            return high << self.right.shift | low
        return high * self.right.product + low

    def split(self, value: int, out: list[int]) -> None:
        """Append the symbols of a number."""
        if self.left is None or self.right is None:
            own = []
            for radix in reversed(self.radices):
                value, symbol = divmod(value, radix)
                own.append(symbol)
            out.extend(reversed(own))
            return
        if self.right.shift is not None:
            high, low = value >> self.right.shift, value & (self.right.product - 1)
        else:
            high, low = divmod(value, self.right.product)
        self.left.split(high, out)
        self.right.split(low, out)


def payload_bits(radices: Sequence[int]) -> int:
    """Bits of the packed symbols: within one a chunk of sum(log2(radices))."""
    return sum(tree.bits for tree in _chunks(radices))


def pack(symbols: Sequence[int], radices: Sequence[int]) -> bytes:
    """Symbols 0 <= s < radix -> bytes, padded with zero bits to a whole byte.

    Raises ValueError if a symbol is outside its radix (a bug of the caller, not bad input).
    """
    if len(symbols) != len(radices):
        raise ValueError(f"{len(symbols)} symbols for {len(radices)} radices")
    for symbol, radix in zip(symbols, radices, strict=True):
        if not 0 <= symbol < radix:
            raise ValueError(f"symbol {symbol} is outside its radix {radix}")
    data = bytearray()
    value = bits = first = 0  # value: what does not fill a byte yet, of `bits` bits
    for tree in _chunks(radices):
        value = value << tree.bits | tree.join(symbols, first)
        bits += tree.bits
        first += tree.count
        data += (value >> bits % 8).to_bytes(bits // 8, "big")
        bits %= 8
        value &= (1 << bits) - 1
    if bits:
        data.append(value << 8 - bits)
    return bytes(data)


def _take(data: bytes, first: int, bits: int) -> int:
    """`bits` bits of the data from bit `first` on, as far as there are any."""
    end = min(first + bits, 8 * len(data))
    if end <= first:
        return 0
    value = int.from_bytes(data[first // 8 : -(-end // 8)], "big") >> -end % 8
    return value & ((1 << end - first) - 1)


def unpack(data: bytes, radices: Sequence[int]) -> list[int]:
    """Bytes -> symbols, the inverse of `pack`.

    Raises FormatError if the data has the wrong length or is not what `pack` writes.
    """
    wrong = FormatError("the payload is not as long as the header says: the file is truncated or corrupt")
    # A damaged header can ask for anything: a cheap lower bound first, before products are formed.
    if sum(radix.bit_length() - 1 for radix in radices) > 8 * len(data):
        raise wrong
    symbols: list[int] = []
    used = 0
    for tree in _chunks(radices):
        number = _take(data, used, tree.bits)
        used += tree.bits
        if used > 8 * len(data):
            raise wrong
        if number >= tree.product:
            raise FormatError("the payload holds an impossible symbol: the file is corrupt")
        tree.split(number, symbols)
    if len(data) != -(-used // 8):
        raise wrong
    if _take(data, used, 8):
        raise FormatError("the payload's padding is not zero: the file is corrupt")
    return symbols


def unpack_prefix(data: bytes, radices: Iterable[int]) -> list[int]:
    """The symbols that a prefix of `pack`'s bytes determines, possibly none.

    A prefix stands for every payload that begins with it; a symbol is known when the first and the
    last of these agree on it and on all symbols before it. Of the radices only those of the chunks that the data
    reaches are taken.
    """
    symbols: list[int] = []
    used = 0
    for tree in _chunks(radices):
        have = min(max(8 * len(data) - used, 0), tree.bits)
        missing = tree.bits - have
        low = _take(data, used, have) << missing
        high = min(low + (1 << missing) - 1, tree.product - 1)
        if low > high:
            raise FormatError("the payload holds an impossible symbol: the file is corrupt")
        first: list[int] = []
        tree.split(low, first)
        if missing:
            last: list[int] = []
            tree.split(high, last)
            for a, b in zip(first, last, strict=True):
                if a != b:
                    return symbols
                symbols.append(a)
        else:
            symbols.extend(first)
        used += tree.bits
    return symbols
