"""The .ddcm header: size, inverse, and what is refused."""

import dataclasses
import random

import pytest

from ddcm_fast.codec import container
from ddcm_fast.codec.config import PRESETS, CodecConfig, preset
from ddcm_fast.codec.container import Header
from ddcm_fast.errors import ConfigError, FormatError

CONFIGS = {
    **{name: config for name, (config, _) in PRESETS.items()},
    "odd K": CodecConfig(K=1000, T=7, seed=2**64 - 1),
    "largest K": CodecConfig(K=2**32, kind="gaussian", schedule="trailing"),
    "t_range": CodecConfig(t_range=(899, 1)),
    "ancestral tail": CodecConfig(schedule="kl", tail=3, ancestral_tail=True),
    "official": CodecConfig(rule="pursuit", M=1024, C=16, official_grid=True),
}


def header(config, **changes):
    return dataclasses.replace(Header(config, "photo", b"abcd", "bfloat16", 256, 256), **changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(name):
    for dtype, size in (("float32", (16, 4096)), ("float16", (333, 77))):
        original = header(CONFIGS[name], dtype=dtype, width=size[0], height=size[1])
        data = container.write(original, b"payload")
        assert container.read(data) == (original, b"payload")


@pytest.mark.parametrize("name", PRESETS)
def test_header_of_a_named_model_is_at_most_32_bytes(name):
    config = preset(name, K=65536, T=500 if name in ("ddcm", "pursuit") else None)
    assert len(container.write(header(config), b"")) <= 32


def test_every_flipped_bit_is_noticed():
    data = container.write(header(CONFIGS["product"]), bytes(range(40)))
    for position in range(8 * len(data)):
        broken = bytearray(data)
        broken[position // 8] ^= 1 << position % 8
        with pytest.raises(FormatError):
            container.read(bytes(broken))


def test_every_truncation_is_noticed():
    data = container.write(header(CONFIGS["pursuit"]), bytes(40))
    for length in range(len(data)):
        with pytest.raises(FormatError):
            container.read(data[:length])


def test_foreign_and_newer_files_say_so():
    data = container.write(header(CONFIGS["ddcm"]), b"")
    with pytest.raises(FormatError, match=r"not a \.ddcm file"):
        container.read(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(FormatError, match="install a newer"):
        container.read(data[:3] + bytes([0x21]) + data[4:])
    with pytest.raises(FormatError, match="install a newer"):
        container.read(data[:3] + bytes([0x12]) + data[4:])


def test_damaged_headers_never_do_worse_than_a_format_error():
    """20,000 mutations with the checksum ignored: parsed, or refused by a FormatError."""
    rng = random.Random(0)
    originals = [container.write(header(config), bytes(20)) for config in CONFIGS.values()]
    read = 0
    for _ in range(20_000):
        broken = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 4)):
            kind = rng.random()
            place = rng.randrange(1, len(broken))
            if kind < 0.6:
                broken[place] = rng.randrange(256)
            elif kind < 0.8:
                del broken[place:]
                broken += b"\0" * rng.randint(1, 3)
            else:
                broken[place:place] = rng.randbytes(rng.randint(1, 12))
        try:
            again, _ = container.read(bytes(broken), ignore_checksum=True)
        except FormatError:
            continue
        read += 1
        assert again.width <= container.MAX_SIDE and again.height <= container.MAX_SIDE
        assert again.config.T <= 65535 and again.config.K <= 2**32
    assert read > 1000


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "best"},
        {"kind": "cauchy"},
        {"K": 0},
        {"K": 2**32 + 1},
        {"K": True},
        {"T": 0},
        {"M": 2},
        {"rule": "pursuit", "M": 1025},
        {"rule": "pursuit", "C": 17},
        {"atoms": 5},
        {"rule": "product"},
        {"schedule": "kl"},
        {"stop": 5},
        {"t_range": (1, 2)},
        {"ancestral_tail": True},
        {"seed": -1},
        {"rule": "rcc", "K": 1000, "atoms": 1},
        {"rule": "trellis", "K": 1000, "C": 2, "atoms": 1},
        {"rule": "trellis", "K": 64, "C": 4, "atoms": 1},
        {"C": 2},
    ],
)
def test_impossible_configurations(wrong):
    with pytest.raises(ConfigError):
        CodecConfig(**wrong)


def test_presets():
    assert preset("ddcm", T=None, K=16).K == 16
    assert preset("product", M=10, T=5).atoms == 50
    with pytest.raises(ConfigError, match="unknown preset"):
        preset("best")
    with pytest.raises(ConfigError, match="unknown setting"):
        preset("ddcm", L=3)
    with pytest.raises(ConfigError, match="not both"):
        preset("product", M=10, atoms=5)


@pytest.mark.parametrize("name", ["", "x" * 256, "\udcff", "a\ud800b"])
def test_a_name_that_no_file_can_hold(name):
    with pytest.raises(ConfigError, match="UTF-8"):
        container.write(header(CONFIGS["product"], model=name), b"")
