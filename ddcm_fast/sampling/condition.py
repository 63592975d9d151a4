"""Condition: what a conditional model is told (prompt, class label, guidance), and how it travels in a file.

A file holds its condition in one of two forms (docs/format.md): the condition itself, or four bytes of its hash. With
the hash the decoder must be given the condition, and is told at once if it is not the one the file was made with.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Union

from ddcm_fast.errors import ConfigError, FormatError

#: First byte of a serialised condition.
_PLAIN, _DEFLATED, _HASH = 0, 1, 2

#: UTF-8 bytes of all of a condition together.
MAX_BYTES = 16384

_HASH_BYTES = 4


@dataclass(frozen=True)
class Condition:
    """What a model is conditioned on. Hashable: models keep the embeddings of the conditions they have met.

    Attributes:
        prompt, negative_prompt: of text-to-image models; an empty text is the same as None.
        label: class of class-conditional models.
        guidance_scale: w of classifier-free guidance, out = uncond + w (cond - uncond); 1 takes the conditional
            prediction alone, and None the model's own default. For guidance-distilled models (Flux, LCM) it is
            the number their guidance embedding is given.

    Raises ConfigError for impossible values.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    label: int | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if text is not None and not isinstance(text, str):
                raise ConfigError(f"{name} is {type(text).__name__}; it must be a text")
            if text is not None and any("\ud800" <= c <= "\udfff" for c in text):
                raise ConfigError(f"{name} is not UTF-8: {text[:40]!a}; it must be a text without lone surrogates")
            if text is not None and "\0" in text:
                raise ConfigError(f"{name} holds a NUL character: {text[:40]!a}; leave it out")
            if text == "":
                object.__setattr__(self, name, None)
        label, scale = self.label, self.guidance_scale
        if label is not None and (isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 2**31):
            raise ConfigError(f"label is {label!r}; it must be an integer of at least 0")
        if scale is not None:
            if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale < 0:
                raise ConfigError(f"guidance_scale is {scale!r}; it must be a number of at least 0")
            object.__setattr__(self, "guidance_scale", float(scale))
        if len(self._text().encode()) > MAX_BYTES:
            raise ConfigError(
                f"the condition has {len(self._text().encode())} bytes of text; it must have at most {MAX_BYTES}"
            )

    def __bool__(self) -> bool:
        """Whether anything at all is conditioned on."""
        return self != Condition()

    def __str__(self) -> str:
        said = {
            "prompt": self.prompt,
            "negative prompt": self.negative_prompt,
            "label": self.label,
            "guidance": self.guidance_scale,
        }
        return ", ".join(f"{k} {v!r}" for k, v in said.items() if v is not None) or "no condition"

    def _text(self) -> str:
        fields = (self.prompt, self.negative_prompt, self.label, self.guidance_scale)
        return "\0".join("" if f is None else str(f) for f in fields).rstrip("\0")

    def digest(self) -> bytes:
        """4 bytes that tell this condition from another."""
        return hashlib.sha256(self._text().encode()).digest()[:_HASH_BYTES]

    def to_bytes(self) -> bytes:
        """Serialised: a byte that says whether deflated, then the fields as UTF-8 between NULs, if that is shorter."""
        plain = self._text().encode()
        coder = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = coder.compress(plain) + coder.flush()
        return bytes([_DEFLATED]) + packed if len(packed) < len(plain) else bytes([_PLAIN]) + plain

    @staticmethod
    def from_bytes(data: bytes) -> Condition:
        """Inverse of to_bytes; raises FormatError."""
        try:
            plain = data[1:]
            if data[0] == _DEFLATED:
                coder = zlib.decompressobj(-15)
                plain = coder.decompress(plain, MAX_BYTES + 1)
                if not coder.eof or coder.unused_data:
                    raise ValueError("its deflated text does not end")
            fields = [field or None for field in plain.decode().split("\0")]
            if data[0] not in (_PLAIN, _DEFLATED) or len(fields) > 4 or len(plain) > MAX_BYTES:
                raise ValueError("it has an unknown form")
            prompt, negative, label, scale = fields + [None] * (4 - len(fields))
            return Condition(
                prompt, negative, None if label is None else int(label), None if scale is None else float(scale)
            )
        except (IndexError, ValueError, zlib.error) as error:
            raise FormatError(f"the condition in the header is damaged: {error}") from error


#: What a condition may be given as: a text is the prompt.
ConditionLike = Union[Condition, str, None]


def as_condition(given: ConditionLike) -> Condition | None:
    """A condition, from a prompt too. Raises ConfigError for anything else."""
    if given is None or isinstance(given, Condition):
        return given
    if isinstance(given, str):
        return Condition(given)
    raise ConfigError(f"a condition must be a Condition or a prompt, not {type(given).__name__}")


def one_each(given: ConditionLike | Sequence[ConditionLike], count: int) -> list[Condition | None]:
    """Conditions of `count` images, from one for all of them or one for each. Raises ConfigError for another number."""
    if given is None or isinstance(given, (Condition, str)):
        return [as_condition(given)] * count
    conditions = [as_condition(each) for each in (given if isinstance(given, Iterable) else [given])]
    if len(conditions) != count:
        raise ConfigError(f"{len(conditions)} conditions for {count} images; give one for all or one for each")
    return conditions


@dataclass(frozen=True)
class Edit:
    """An edited file: from step `start` on (0 is the noisiest) the model is told `condition` instead of the file's.

    A condition that says nothing is None: both stand in a file as the same bytes.
    """

    start: int
    condition: Condition | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "condition", self.condition or None)

    def at(self, index: int, source: Condition | None) -> Condition | None:
        """What the model is told at a step of the schedule."""
        return source if index < self.start else self.condition


@dataclass(frozen=True)
class ConditionHash:
    """Stands in a header for a condition that does not travel with the file."""

    value: bytes

    def to_bytes(self) -> bytes:
        """Serialised, beside Condition.to_bytes."""
        return bytes([_HASH]) + self.value


def read_condition(data: bytes) -> Condition | ConditionHash:
    """The condition of a header, or its hash; raises FormatError."""
    if data[:1] == bytes([_HASH]):
        if len(data) != 1 + _HASH_BYTES:
            raise FormatError("the condition's hash in the header is damaged: the file is corrupt")
        return ConditionHash(data[1:])
    return Condition.from_bytes(data)


def settle(stored: Condition | ConditionHash | None, given: Condition | None) -> Condition | None:
    """The condition to decode with, from what the file says and what the user gave (defaults filled in).

    Raises ConfigError: the condition is needed and missing, or is not the one the file was made with.
    """
    if isinstance(stored, ConditionHash):
        if given is None:
            raise ConfigError(
                "the file was made with a condition that does not travel in it; give the same prompt, label and "
                "guidance scale to decode it"
            )
        if given.digest() != stored.value:
            raise ConfigError(f"the file was made with another condition than {given}; give its own")
        return given
    if given is not None and given != stored:
        raise ConfigError(
            f"the file was made with {stored or 'no condition'}, not with {given}; leave the condition out"
        )
    return stored
