"""The registry of rules: what files, configurations and the command line derive from it, and rules of one's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest
import torch

from ddcm_fast import Codec, CodecConfig, load_model, preset
from ddcm_fast.cli.command import build_parser
from ddcm_fast.codec import container
from ddcm_fast.codec.config import PRESETS, RULE_NUMBERS, options
from ddcm_fast.errors import ConfigError, DDCMWarning, FormatError
from ddcm_fast.sampling import rules
from ddcm_fast.sampling.rules import RULES, Greedy, register

FIELD = load_model("gaussian-field", device="cpu")
IMAGE = FIELD.draw(1, 16, 16, seed=3)[0].clamp(-1, 1)
SMALL = {"K": 256, "T": 6}
MORE = {"trellis": {"C": 2}, "diffc": {"K": 1024, "stop": 300}}


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(RULES)
    rules._load_installed.cache_clear()
    yield
    RULES.clear()
    RULES.update(before)
    rules._load_installed.cache_clear()


class Mine(Greedy):
    """As `greedy`, in files of another kind."""

    name, number = "mine", None


def test_numbers_in_files_stay_what_they_are() -> None:
    numbers = {name: rule.number for name, rule in RULES.items() if rule.number is not None}
    assert numbers == {"greedy": 0, "pursuit": 1, "product": 2, "threshold": 3, "rcc": 4, "trellis": 5, "rcc_padded": 6}


def test_parameters_are_fields_with_options() -> None:
    fields = CodecConfig.__dataclass_fields__
    texts = {name: how["help"] for name, how in options()}
    for rule in RULES.values():
        for name, parameter in rule.parameters.items():
            assert name in fields and parameter.low < parameter.high
            assert name not in RULE_NUMBERS or (parameter.help in texts[name] and rule.name in texts[name])
    help_text = " ".join(build_parser()._subparsers._group_actions[0].choices["compress"].format_help().split())
    assert all(" ".join(text.split()) in help_text for text in texts.values())


@pytest.mark.parametrize("name", PRESETS)
def test_payload_bits_are_what_files_take(name: str) -> None:
    config = preset(name, **SMALL | MORE.get(name, {}), atoms=40 if PRESETS[name][0].shares_atoms else None)
    if name.startswith("diffc"):
        pytest.importorskip("constriction")
    payload = container.read(Codec(FIELD, config).encode(IMAGE)[0].data)[1]
    bits = config.rule_type.payload_bits(config, lambda: config.steps(FIELD), FIELD.latent_shape(16, 16)[-1] ** 2 * 3)
    if config.rule_type.varies:
        assert 0.5 * bits < 8 * len(payload) < 2 * bits
    else:
        assert bits <= 8 * len(payload) + 1e-9 < bits + 8


def test_a_rule_of_ones_own_goes_by_its_name() -> None:
    register(Mine)
    config = CodecConfig(rule="mine", K=1000, T=5)
    coded = Codec(FIELD, config).encode(IMAGE)[0]
    header, payload = container.read(coded.data)
    assert header.config == config and b"\x04mine" in coded.data
    assert payload == container.read(Codec(FIELD, CodecConfig(K=1000, T=5)).encode(IMAGE)[0].data)[1]
    assert torch.equal(Codec(FIELD).decode(coded.data), coded.reconstruction)
    del RULES["mine"]
    with pytest.raises(FormatError, match="coded with the rule 'mine', which is not known here; install") as caught:
        Codec(FIELD).decode(coded.data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "my rule", "mine\n", "règle", "greedy"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        register(type("Other", (Mine,), {"name": name}))


def test_numbers_are_the_packages_own() -> None:
    with pytest.raises(ConfigError, match="number"):
        register(type("Other", (Mine,), {"number": 7}))
    assert register(Mine) is register(Mine)


@pytest.mark.parametrize("number", [7, 14])
def test_an_unknown_number_is_refused(number: int) -> None:
    data = bytearray(Codec(FIELD, CodecConfig(**SMALL)).compress(IMAGE))
    place = 8 + 1 + len(FIELD.name) + 4 + 2
    data[place] |= number << 4
    with pytest.raises(FormatError, match="unknown rule"):
        container.read(bytes(data), ignore_checksum=True)


def test_a_name_where_a_number_belongs_is_refused() -> None:
    register(Mine)
    data = Codec(FIELD, CodecConfig(rule="mine", **SMALL)).compress(IMAGE)
    with pytest.raises(FormatError, match="not known here"):
        container.read(data.replace(b"\x04mine", b"\x04\xff\n\0e"), ignore_checksum=True)
    with pytest.raises(FormatError, match="not its number"):
        container.read(data.replace(b"\x04mine", b"\x03rcc"), ignore_checksum=True)


def test_installed_rules_are_found_and_broken_ones_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint(name, f"{__name__}:{name}", rules.ENTRY_POINTS) for name in ("Nothing", "Mine")]
    monkeypatch.setattr(rules, "entry_points", lambda group: found if group == rules.ENTRY_POINTS else [])
    with pytest.warns(DDCMWarning, match="Nothing cannot be loaded"):
        assert CodecConfig(rule="mine").rule_type is Mine
    with warnings.catch_warnings(), pytest.raises(ConfigError, match="unknown rule 'other'"):
        warnings.simplefilter("error")
        CodecConfig(rule="other")
    assert math.isfinite(CodecConfig(rule="mine").rule_type.worth(CodecConfig(rule="mine"), 8.0))
