"""The .ddcm container (docs/format.md): a header with everything the decoder needs, then the packed symbols."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Union

from ddcm_fast.codebook.law import KINDS, MAX_SIZE, NOISE_LAW_VERSION
from ddcm_fast.codec.config import RULE_NUMBERS, SCHEDULES, TAILED, CodecConfig
from ddcm_fast.errors import ConfigError, FormatError, InputError
from ddcm_fast.files import Kind
from ddcm_fast.sampling.condition import MAX_BYTES, Condition, ConditionHash, Edit, read_condition
from ddcm_fast.sampling.rules import RULES, Rule, rule_named

MAGIC = b"\xdcDM"
FORMAT_VERSION = 1
MAX_SIDE = 4096
MAX_NAME = 255
#: What the bytes of a file may be given as; anything with a buffer (an array of uint8) besides.
FileData = Union[bytes, bytearray, memoryview, IO[bytes], "os.PathLike[str]", Any]
#: Bytes of magic, version and checksum.
_START = 8
DTYPE_NAMES = ("float32", "bfloat16", "float16")
#: In the place of the model's name, in files that DDCMScheduler replays in a pipeline's call.
PIPELINE = "DDCMScheduler"

#: Number of a rule whose name stands in the file.
_NAMED = 15


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        config: rule, codebook, schedule and seed.
        model: name of the model; fingerprint: its 4 bytes; dtype: of the encoder's network.
        width, height: of the image in pixels, before padding.
        condition: what the model was told, or its hash where it does not travel.
        edit: what it is told from some step on instead, in edited files.
    """

    config: CodecConfig
    model: str
    fingerprint: bytes
    dtype: str
    width: int
    height: int
    condition: Condition | ConditionHash | None = None
    edit: Edit | None = None


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def byte(self, value: int) -> None:
        self.data.append(value)

    def varint(self, value: int) -> None:
        """Unsigned LEB128."""
        while value > 0x7F:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def text(self, value: bytes) -> None:
        """Bytes behind their number."""
        self.varint(len(value))
        self.data += value

    def size(self, value: int) -> None:
        """1 to 2^32: powers of two in one byte (their logarithm), else 0xff and the number less one."""
        if value & (value - 1) == 0:
            self.byte(value.bit_length() - 1)
        else:
            self.byte(0xFF)
            self.varint(value - 1)


class _Reader:
    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position

    def take(self, count: int) -> bytes:
        chunk = self.data[self.position : self.position + count]
        if len(chunk) != count:
            raise FormatError("the file ends inside its header: it is truncated")
        self.position += count
        return chunk

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
            shift += 7
            if shift > 63:
                raise FormatError("the header holds an impossible number: the file is corrupt")

    def text(self) -> bytes:
        length = self.varint()
        if length > MAX_BYTES:
            raise FormatError("the header holds an impossible number: the file is corrupt")
        return self.take(length)

    def size(self) -> int:
        log2 = self.byte()
        value = self.varint() + 1 if log2 == 0xFF else 1 << log2 if log2 <= 32 else 0
        if not 1 <= value <= MAX_SIZE:
            raise FormatError("the header holds an impossible codebook size: the file is corrupt")
        return value


def file_bytes(data: FileData) -> bytes:
    """The bytes of a file given as bytes of any kind, a binary stream (from where it stands) or a path.

    Raises InputError: a path that cannot be read, or anything else (a name must come as a pathlib.Path).
    """
    try:
        if isinstance(data, os.PathLike):
            return Path(data).read_bytes()
        return bytes(memoryview(data.read() if hasattr(data, "read") else data))
    except OSError as error:
        raise InputError(f"cannot read {data!s}: {error.strerror or error}") from error
    except TypeError as error:
        what = type(data).__name__
        raise InputError(f"a file must be given as bytes, a binary stream or a pathlib.Path, not {what}") from error


def refuse_pipelines(model: str) -> None:
    """Raise FormatError if a header's model is not one, but a pipeline's scheduler."""
    if model == PIPELINE:
        raise FormatError("the file was made by DDCMScheduler in a pipeline: replay it there (docs/sampler.md)")


def _is_container(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


#: What a .ddcm file may replace without being forced to: another, by its first bytes.
FILE = Kind("a .ddcm file", _is_container)


def write(header: Header, payload: bytes) -> bytes:
    """Header and packed symbols -> the bytes of a file."""
    config = header.config
    w = _Writer()
    try:
        name = header.model.encode()
    except UnicodeEncodeError:  # lone surrogates
        name = b""
    if not 0 < len(name) <= MAX_NAME:
        raise ConfigError(f"the model's name is {header.model!a}; in a file it must be 1 to {MAX_NAME} bytes of UTF-8")
    w.byte(len(name))
    w.data += name
    w.data += header.fingerprint
    w.varint(header.width)
    w.varint(header.height)
    rule = config.rule_type
    number = _NAMED if rule.number is None else rule.number
    w.byte(KINDS.index(config.kind) | DTYPE_NAMES.index(header.dtype) << 2 | number << 4)
    w.byte(
        SCHEDULES.index(config.schedule)
        | config.ancestral_tail << 3
        | (config.t_range is not None) << 4
        | config.official_grid << 5
        | (header.condition is not None) << 6
        | (header.edit is not None) << 7
    )
    if number == _NAMED:
        w.text(rule.name.encode())
    w.varint(config.T)
    w.varint(config.seed)
    w.size(config.K)
    for field in RULE_NUMBERS:
        if field in rule.parameters:
            w.varint(getattr(config, field))
    if config.schedule in TAILED:
        w.varint(config.stop)
        w.varint(config.tail)
    if config.t_range is not None:
        w.varint(config.t_range[0])
        w.varint(config.t_range[1])
    if header.condition is not None:
        w.text(header.condition.to_bytes())
    if header.edit is not None:
        w.varint(header.edit.start)
        w.text(header.edit.condition.to_bytes() if header.edit.condition else b"")
    body = bytes(w.data) + payload
    version = FORMAT_VERSION << 4 | NOISE_LAW_VERSION
    check = zlib.crc32(bytes([version]) + body)
    return MAGIC + bytes([version]) + check.to_bytes(4, "big") + body


def read(data: bytes, ignore_checksum: bool = False) -> tuple[Header, bytes]:
    """The bytes of a file -> header and packed symbols.

    Raises FormatError: not a .ddcm file, too new, truncated, of a rule that is not known here, or (unless ignored) a
    wrong checksum.
    """
    _check_start(data, ignore_checksum)
    r = _Reader(data, _START)
    try:
        name = r.take(r.byte()).decode()
    except UnicodeDecodeError as error:
        raise FormatError("the model's name is not UTF-8: the file is corrupt") from error
    fingerprint = r.take(4)
    width, height = r.varint(), r.varint()
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise FormatError(f"the header asks for an image of {width}x{height} pixels: the file is corrupt")
    what, how = r.byte(), r.byte()
    config = _read_config(r, what, how)
    dtype = what >> 2 & 3
    if dtype >= len(DTYPE_NAMES):
        raise FormatError("the header names an unknown dtype: the file is corrupt")
    condition = read_condition(r.text()) if how & 64 else None
    edit = None
    if how & 128:
        start, target = r.varint(), r.text()
        edit = Edit(start, Condition.from_bytes(target) if target else None)
    header = Header(config, name, fingerprint, DTYPE_NAMES[dtype], width, height, condition, edit)
    return header, data[r.position :]


def _check_start(data: bytes, ignore_checksum: bool) -> None:
    """Raise FormatError unless magic, version and checksum are right."""
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError(
            f"this is not a .ddcm file: it must begin with {MAGIC.hex(' ')}, not {data[:3].hex(' ') or 'nothing'}"
        )
    r = _Reader(data, len(MAGIC))
    version = r.byte()
    if version >> 4 > FORMAT_VERSION or version & 15 > NOISE_LAW_VERSION:
        raise FormatError(
            f"the file has format version {version >> 4} and noise law {version & 15}; this ddcm-fast reads up to "
            f"{FORMAT_VERSION} and {NOISE_LAW_VERSION}: install a newer one"
        )
    if version != FORMAT_VERSION << 4 | NOISE_LAW_VERSION:
        raise FormatError("the file's version number is impossible: it is corrupt")
    check = int.from_bytes(r.take(4), "big")
    if not ignore_checksum and check != zlib.crc32(data[3:4] + data[_START:]):
        raise FormatError("the checksum does not match: the file is truncated or corrupt (see --ignore-checksum)")


def _read_config(r: _Reader, what: int, how: int) -> CodecConfig:
    kind, schedule = what & 3, how & 7
    if kind >= len(KINDS) or schedule >= len(SCHEDULES):
        raise FormatError("the header names an unknown codebook or schedule: the file is corrupt")
    rule = _read_rule(r, what >> 4)
    steps, seed, size = r.varint(), r.varint(), r.size()
    fields = {field: r.varint() for field in RULE_NUMBERS if field in rule.parameters}
    stop, tail = (r.varint(), r.varint()) if SCHEDULES[schedule] in TAILED else (0, 0)
    try:
        return CodecConfig(
            rule=rule.name,
            kind=KINDS[kind],
            K=size,
            T=steps,
            schedule=SCHEDULES[schedule],
            stop=stop,
            tail=tail,
            ancestral_tail=bool(how & 8),
            t_range=(r.varint(), r.varint()) if how & 16 else None,
            seed=seed,
            official_grid=bool(how & 32),
            **fields,
        )
    except ConfigError as error:
        raise FormatError(f"the header is corrupt: {error}") from error


def _read_rule(r: _Reader, number: int) -> type[Rule]:
    """A rule by its number, or by its name where that stands in the file."""
    if number != _NAMED:
        for rule in RULES.values():
            if rule.number == number:
                return rule
        raise FormatError("the header names an unknown rule: the file is corrupt, or of a newer ddcm-fast")
    name = r.text().decode("ascii", "replace")
    try:
        rule = rule_named(name)
    except ConfigError as error:
        raise FormatError(
            f"the file was coded with the rule {name!r}, which is not known here; install the package that has it, or "
            "register it before"
        ) from error
    if rule.number is not None:
        raise FormatError(f"the header has the rule {name!r} by its name, not its number: the file is corrupt")
    return rule
