"""Mixed radix packing: symbols of any radix in ceil(log2 of the product of the radices) bits.

Symbols are written first to last into one integer whose most significant digits are the first
symbols, so a prefix of the bytes fixes a prefix of the symbols. Conversion is by divide and conquer on
Python's integers; radices that are powers of two cost a shift. To keep division from growing
quadratically, the integer is cut after symbols whose product passes 2^20: each such chunk ends on a
whole bit, so a payload of 128 KiB or less is within one bit (plus byte padding) of its information.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import FormatError

_CHUNK_BITS = 1 << 20


def _chunks(radices: Sequence[int]) -> list[tuple[int, int]]:
    """Cut [0, n) into ranges of symbols that share one integer."""
    out, first, bits = [], 0, 0
    for i, radix in enumerate(radices):
        bits += radix.bit_length()
        if bits >= _CHUNK_BITS:
            out.append((first, i + 1))
            first, bits = i + 1, 0
    if first < len(radices):
        out.append((first, len(radices)))
    return out


class _Tree:
    """Products of the radices of a range, halved recursively."""

    __slots__ = ("left", "product", "right", "shift")

    def __init__(self, radices: Sequence[int], first: int, last: int) -> None:
        self.left: _Tree | None = None
        self.right: _Tree | None = None
        if last - first == 1:
            self.product = radices[first]
        else:
            middle = (first + last) // 2
            self.left, self.right = _Tree(radices, first, middle), _Tree(radices, middle, last)
            self.product = self.left.product * self.right.product
        power_of_two = self.product & (self.product - 1) == 0
        self.shift = self.product.bit_length() - 1 if power_of_two else None

    @property
    def bits(self) -> int:
        """Bits of one number below the product: ceil(log2(product))."""
        return (self.product - 1).bit_length()

    def join(self, symbols: Sequence[int], first: int, last: int) -> int:
        if self.left is None or self.right is None:
            return symbols[first]
        middle = (first + last) // 2
        high = self.left.join(symbols, first, middle)
        low = self.right.join(symbols, middle, last)
        if self.right.shift is not None:
            return high << self.right.shift | low
        return high * self.right.product + low

    def split(self, value: int, out: list[int]) -> None:
        if self.left is None or self.right is None:
            out.append(value)
            return
        if self.right.shift is not None:
            high, low = value >> self.right.shift, value & (self.right.product - 1)
        else:
            high, low = divmod(value, self.right.product)
        self.left.split(high, out)
        self.right.split(low, out)


def payload_bits(radices: Sequence[int]) -> int:
    """Bits of the packed symbols: within one a chunk of sum(log2(radices))."""
    return sum(_Tree(radices, first, last).bits for first, last in _chunks(radices))


def pack(symbols: Sequence[int], radices: Sequence[int]) -> bytes:
    """Symbols 0 <= s < radix -> bytes, padded with zero bits to a whole byte.

    Raises ValueError if a symbol is outside its radix (a bug of the caller, not bad input).
    """
    if len(symbols) != len(radices):
        raise ValueError(f"{len(symbols)} symbols for {len(radices)} radices")
    for symbol, radix in zip(symbols, radices, strict=True):
        if not 0 <= symbol < radix:
            raise ValueError(f"symbol {symbol} is outside its radix {radix}")
    value = bits = 0
    for first, last in _chunks(radices):
        tree = _Tree(radices, first, last)
        value = value << tree.bits | tree.join(symbols, first, last)
        bits += tree.bits
    padding = -bits % 8
    return (value << padding).to_bytes((bits + padding) // 8, "big")


def unpack(data: bytes, radices: Sequence[int]) -> list[int]:
    """Bytes -> symbols, the inverse of `pack`.

    Raises FormatError if the data has the wrong length or is not what `pack` writes.
    """
    wrong = FormatError("the payload is not as long as the header says: the file is truncated or corrupt")
    # A damaged header can ask for anything: a cheap lower bound first, before products are formed.
    if sum(radix.bit_length() - 1 for radix in radices) > 8 * len(data):
        raise wrong
    trees = [_Tree(radices, first, last) for first, last in _chunks(radices)]
    bits = sum(tree.bits for tree in trees)
    if len(data) != -(-bits // 8):
        raise wrong
    value = int.from_bytes(data, "big")
    remaining = 8 * len(data)
    symbols: list[int] = []
    for tree in trees:
        remaining -= tree.bits
        number = value >> remaining & ((1 << tree.bits) - 1)
        if number >= tree.product:
            raise FormatError("the payload holds an impossible symbol: the file is corrupt")
        tree.split(number, symbols)
    if value & ((1 << remaining) - 1):
        raise FormatError("the payload's padding is not zero: the file is corrupt")
    return symbols


def unpack_prefix(data: bytes, radices: Sequence[int]) -> list[int]:
    """The symbols that a prefix of `pack`'s bytes determines, possibly none.

    A prefix stands for every payload that begins with it; a symbol is known when the first and the
    last of these agree on it and on all symbols before it.
    """
    trees = [_Tree(radices, first, last) for first, last in _chunks(radices)]
    known_bits = 8 * len(data)
    value = int.from_bytes(data, "big")
    symbols: list[int] = []
    used = 0
    for tree in trees:
        have = min(max(known_bits - used, 0), tree.bits)
        missing = tree.bits - have
        head = value >> max(known_bits - used - have, 0) & ((1 << have) - 1)
        low, high = head << missing, min((head + 1 << missing) - 1, tree.product - 1)
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
