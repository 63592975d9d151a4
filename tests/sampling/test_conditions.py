"""Conditions: their serialised form and what a decoder is told of a wrong one."""

from __future__ import annotations

import pytest

from ddcm_fast.errors import ConfigError, FormatError
from ddcm_fast.sampling.condition import Condition, ConditionHash, read_condition, settle

CONDITIONS = [
    Condition("a red fox"),
    Condition("ein Fuchs im Schnee, größer", "blurry, low quality", None, 7.5),
    Condition(label=207, guidance_scale=1.4142135),
    Condition("a " * 400),
]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_serialised_form_round_trips(condition: Condition) -> None:
    data = condition.to_bytes()
    assert read_condition(data) == condition
    assert len(data) <= 1 + len(condition._text().encode())
    stand_in = ConditionHash(condition.digest())
    assert read_condition(stand_in.to_bytes()) == stand_in


def test_long_prompts_are_deflated() -> None:
    assert len(CONDITIONS[3].to_bytes()) < 40


def test_digests_differ() -> None:
    assert len({c.digest() for c in CONDITIONS}) == len(CONDITIONS)
    assert Condition("7").digest() != Condition(label=7).digest() != Condition(guidance_scale=7.0).digest()


def test_empty_is_no_condition() -> None:
    assert not Condition("", "")
    assert Condition(label=0) and Condition(guidance_scale=0)


@pytest.mark.parametrize("bad", [{"label": -1}, {"label": True}, {"guidance_scale": float("nan")},
                                 {"prompt": "a\0b"}, {"prompt": 3}, {"prompt": "x" * 20000}])  # fmt: skip
def test_impossible_values(bad: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError):
        Condition(**bad)


@pytest.mark.parametrize("data", [b"", b"\x00a\0b\0c\0d\0e", b"\x01\xff\xff", b"\x02abc", b"\x07abc", b"\x00\xff"])
def test_damaged_bytes(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_condition(data)


def test_settle() -> None:
    fox, cat = Condition("a fox"), Condition("a cat")
    stand_in = ConditionHash(fox.digest())
    assert settle(fox, None) == settle(fox, fox) == settle(stand_in, fox) == fox
    assert settle(None, None) is None
    for stored, given, message in ((fox, cat, "'a fox'"), (stand_in, None, "does not travel"),
                                   (stand_in, cat, "another condition"), (None, cat, "no condition")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            settle(stored, given)
