"""Whatever settings CodecConfig takes: the encoder's reconstruction is what the decoder makes, or one of our errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ddcm_fast import Codec, load_model
from ddcm_fast.codebook.law import KINDS
from ddcm_fast.codec.config import PRESETS, SCHEDULES, TAILED, CodecConfig, preset
from ddcm_fast.errors import ConfigError, DDCMError
from ddcm_fast.sampling.rules.base import SearchCost
from ddcm_fast.sampling.schedule import allocate

torch.set_num_threads(1)
FIELD = load_model("gaussian-field", device="cpu")
IMAGE = FIELD.draw(1, 16, 17, seed=2).clamp(-1, 1)


@st.composite
def configs(draw: st.DrawFn, names: tuple[str, ...] = tuple(PRESETS)) -> CodecConfig:
    name = draw(st.sampled_from(names))
    rule = PRESETS[name][0].rule
    schedule = draw(st.sampled_from(SCHEDULES))
    given: dict[str, Any] = {
        "kind": draw(st.sampled_from(KINDS)),
        "schedule": schedule,
        "T": draw(st.integers(1, 16)),
        "seed": draw(st.sampled_from((0, 7, 2**64 - 1))),
        "stop": draw(st.sampled_from((5, 100, 600))) if schedule == "kl" else 0,
        "tail": draw(st.integers(1, 3)) if schedule in TAILED else 0,
        "ancestral_tail": schedule in TAILED and draw(st.booleans()),
        "t_range": draw(st.sampled_from((None, None, (900, 200), (300, 299)))),
    }
    if PRESETS[name][0].shares_atoms:
        given["atoms"] = draw(st.one_of(st.integers(1, 40), st.sampled_from((100, 300))))
    if rule == "pursuit":
        given |= {"M": draw(st.integers(1, 4)), "C": draw(st.integers(1, 3)), "official_grid": draw(st.booleans())}
    if rule == "trellis":
        given["C"] = draw(st.integers(1, 3))
        given["K"] = 1 << given["C"] + draw(st.integers(given["C"], 6))
    elif rule in ("rcc", "rcc_padded"):
        given["K"] = 1 << draw(st.integers(7, 9))
    else:
        given["K"] = draw(st.one_of(st.integers(1, 40), st.sampled_from((64, 256, 1000))))
    return preset(name, **given)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(configs())
def test_what_is_encoded_is_decoded(config: CodecConfig) -> None:
    codec = Codec(FIELD, config)
    try:
        coded = codec.encode(IMAGE)[0]
    except ConfigError:  # more atoms a step than the codebook or the state has
        assume(False)
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)
    early = codec.decode(coded.data, first=0.5)
    assert early.shape == coded.reconstruction.shape and bool(early.isfinite().all())


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(configs(tuple(name for name in PRESETS if PRESETS[name][0].shares_atoms)))
def test_steps_share_all_atoms_and_none_is_coded_without(config: CodecConfig) -> None:
    try:
        coded = [step for step in config.steps(FIELD) if step.coded]
    except ConfigError:
        assume(False)
    assert all(step.atoms >= 1 for step in coded)
    total = sum(step.atoms for step in coded)
    assert not coded or config.atoms <= total < config.atoms + len(coded)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32), st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_allocation_gives_out_everything(total: int, weights: list[float]) -> None:
    parts = allocate(total, weights)
    assert sum(parts) == total and min(parts) >= 0


@pytest.mark.parametrize(
    "config",
    [
        preset("turbo", T=11, atoms=6),  # a share that was none once the steps without had left: KeyError
        preset("turbo", T=11, atoms=6, schedule="linspace", stop=0, tail=0),
        preset("diffc", T=11, atoms=6, K=256, schedule="trailing", stop=0, tail=0),
        preset("trellis", K=1024, C=1, T=2, atoms=5),  # fewer groups than a state remembers: RuntimeError
        preset("diffc", T=3, atoms=4, K=256, t_range=(1, 0)),  # no step carries bits
    ],
)
def test_settings_that_failed(config: CodecConfig) -> None:
    codec = Codec(FIELD, config)
    coded = codec.encode(IMAGE)[0]
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)


def test_no_step_with_bits_at_a_bitrate() -> None:
    codec = Codec(FIELD, preset("diffc", K=256, t_range=(1, 0)))
    try:
        codec.encode(IMAGE, bpp=2.0)
    except DDCMError as error:
        assert "\n" not in str(error)


def cost(name: str, dim: int, **settings: Any) -> SearchCost:
    config = preset(name, T=10, **settings)
    return config.rule_type.search_cost(config, dim)


def test_search_cost_follows_the_settings() -> None:
    base = cost("ddcm", 1024, K=4096, kind="gaussian")
    assert base.entries == 10 * 4096 * 1024 and base.numbers == 0
    assert cost("product", 1024, K=4096, kind="gaussian", atoms=80).entries == base.entries
    assert cost("pursuit", 1024, K=4096, M=3, kind="gaussian").entries == 3 * base.entries
    trellis = cost("trellis", 10000, atoms=1000)
    states, atoms = 100 * 2**12, 100 * 2**16
    assert trellis.numbers == states // 8 and trellis.scores == atoms
    assert math.isclose(trellis.operations, 10 * atoms)


def test_numpys_integers_are_integers() -> None:
    own = CodecConfig(K=np.int64(64), T=np.uint8(7), seed=np.uint64(2**64 - 1), t_range=np.array([900, 3]).tolist())
    assert own == CodecConfig(K=64, T=7, seed=2**64 - 1, t_range=(900, 3))
    assert all(type(value) is int for value in (own.K, own.T, own.seed, *own.t_range))
    assert CodecConfig(t_range=(np.int32(900), np.int16(3))) == CodecConfig(t_range=(900, 3))


@pytest.mark.parametrize(
    "given",
    [
        *({"t_range": value} for value in ((900.0, 3), (900, 3.5), (900,), (9, 5, 1), "90", 7, (3, 900), (5, -1))),
        *({"T": value} for value in (2.0, "5", True, None, np.float32(3))),
    ],
    ids=str,
)
def test_what_is_no_integer_is_refused(given: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))) as error:
        CodecConfig(**given)
    assert "\n" not in str(error.value)
