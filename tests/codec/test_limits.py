"""What a file may ask for is looked at before any of it is done. Files that once got it are kept in fuzz/corpus."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ddcm_fast import Codec, Limits, load_model
from ddcm_fast.cli import main
from ddcm_fast.codec import container, official
from ddcm_fast.codec import job as job_module
from ddcm_fast.codec.config import CodecConfig, preset
from ddcm_fast.codec.container import Header
from ddcm_fast.codec.identity import fingerprint
from ddcm_fast.codec.limits import OPTIONS
from ddcm_fast.errors import FormatError, LimitError
from ddcm_fast.models.tiled import TiledModel
from ddcm_fast.sampling.choosers import Draw

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))
from targets import TARGETS  # noqa: E402

FIELD = load_model("gaussian-field", device="cpu")


def file(config: CodecConfig, payload: bytes = b"", side: int = 4096, model: Any = FIELD) -> bytes:
    return container.write(
        Header(config, model.name, fingerprint(model, config), "float32", side, side), payload
    )


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise is made and no network called."""

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("work was done for a file that is refused")

    monkeypatch.setattr(job_module, "initial_noise", never)
    monkeypatch.setattr(type(FIELD), "predict", never)


@pytest.mark.parametrize(
    "config",
    [
        preset("ddcm", T=20),
        preset("product", atoms=2**32, T=1),
        preset("product", atoms=40_000_000, K=1),
        preset("trellis", atoms=2**32, T=1),
        preset("trellis", atoms=50_000_000),
        preset("turbo", K=2**32, atoms=20 * 1024),
        preset("diffc", atoms=50_000_000, K=256),
        preset("pursuit", K=2**32, M=1024, C=16, T=2),
    ],
    ids=lambda config: f"{config.rule} {config.K} {config.atoms}",
)
def test_a_payload_that_does_not_fit_is_refused_before_any_work(config: CodecConfig, idle: None) -> None:
    with pytest.raises(FormatError, match=r"(truncated|cannot do)"):
        Codec(FIELD, limits=Limits(pixel_steps=1 << 40)).decode(file(config))


@pytest.mark.parametrize("config", [preset("pursuit", K=2**32, M=1024, C=16, T=9), preset("product", atoms=500, K=1)])
def test_a_cut_file_is_read_no_further_than_it_goes(config: CodecConfig) -> None:
    codec = Codec(FIELD)
    image = codec.decode(file(config, side=16), ignore_checksum=True)
    assert image.shape == (3, 16, 16)
    job = codec._job(config, 16, 16)
    assert job.rule.read(b"", job.coded, prefix=True) == []


@pytest.mark.parametrize(
    ("limits", "config", "says"),
    [
        (Limits(pixels=1023), preset("ddcm", T=2), "pixels of an image"),
        (Limits(pixel_steps=2047), preset("ddcm", T=2), "pixels times steps"),
        (Limits(pixel_steps=4096), preset("pursuit", T=2, M=3), "pixels times steps"),
        (Limits(evaluations=1), preset("ddcm", T=2), "calls of the network"),
        (Limits(memory=100_000), preset("ddcm", T=2), "bytes needed"),
        (Limits(payload=2), preset("ddcm", T=2), "symbols"),
    ],
)
def test_limits(limits: Limits, config: CodecConfig, says: str, idle: None) -> None:
    with pytest.raises(LimitError, match=f"{says}.*raise --max-[a-z-]+ .in Python Limits") as caught:
        Codec(FIELD, limits=limits).decode(file(config, bytes(3), side=32))
    assert "\n" not in str(caught.value)


def test_tiles_count() -> None:
    tiled = TiledModel(FIELD, 1, 0)
    assert tiled.calls(64, 32) == 64 * 32 and TiledModel(FIELD, 16, 8).calls(16, 32) == 3 and FIELD.calls(99, 9) == 1
    with pytest.raises(LimitError, match="calls of the network"):
        Codec(tiled).decode(file(preset("ddcm", T=20, K=1), model=tiled))


def test_limits_hold_for_what_is_made_too() -> None:
    codec = Codec(FIELD, preset("ddcm", T=2, K=16), limits=Limits(pixels=256))
    assert len(codec.generate(1, 16, 16)) == 1
    for make in (lambda: codec.generate(1, 16, 17), lambda: codec.encode(torch.zeros(3, 17, 16))):
        with pytest.raises(LimitError):
            make()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (preset("ddcm", K=2**32, kind="gaussian", T=20), "hours of searching.*--force"),
        (preset("pursuit", K=2**32), "--max-memory"),
        (preset("trellis", K=2**24, C=8), "--max-memory"),
    ],
)
def test_endless_searches_ask_first(config: CodecConfig, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcm_fast.codec.limits._entries_per_second", lambda *_: 1e10)
    codec = Codec(FIELD, config, backend="reference")
    image = torch.zeros(3, 128, 128)
    for target in ({}, {"bpp": 1.0}):
        with pytest.raises(LimitError, match=says):
            codec.encode(image, **target)


def test_a_trellis_holds_scores_only_where_the_backend_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = preset("trellis", K=2**20, C=4, atoms=6400, T=16), torch.device("cpu")
    Limits(memory=1 << 28).check_search(config, 12288, 1, "cpu", cpu)
    with pytest.raises(LimitError, match="--max-memory"):
        Limits(memory=1 << 28).check_search(config, 12288, 1, "reference", cpu)
    monkeypatch.setattr("ddcm_fast.codebook.backends.resolve", lambda name, device: name)  # as if GPUs were there
    monkeypatch.setattr("ddcm_fast.codec.limits._entries_per_second", lambda *_: 1e13)
    for name in ("cuda", "triton"):
        Limits(memory=1 << 28).check_search(config, 12288, 1, name, torch.device("cuda"))


def test_ordinary_searches_are_not_even_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> float:
        raise AssertionError("a short search was estimated")

    monkeypatch.setattr("ddcm_fast.codec.limits._entries_per_second", never)
    cpu = torch.device("cpu")
    for name in ("ddcm", "turbo"):
        Limits().check_search(preset(name, T=20), 3 * 256 * 256, 1, "auto", cpu)
    monkeypatch.setattr("ddcm_fast.codec.limits._entries_per_second", lambda *_: 5e9)
    Limits().check_search(preset("ddcm", K=2**20, T=20), 16384, 1, "auto", cpu)
    Codec(FIELD, preset("ddcm", K=2**32, T=1)).sample(Draw(0), 16, 16)  # chosen at random, not searched


def test_speed_is_measured_by_a_search() -> None:
    from ddcm_fast.codec.limits import _entries_per_second

    assert _entries_per_second("hadamard", 1024, "auto", torch.device("cpu")) > 0


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    base = ["compress", str(tmp_path / "a.png"), str(tmp_path / "a.ddcm"), "--model", "gaussian-field", "-q"]
    own = [*base, "--preset", "ddcm", "-T", "2", "-K", "4"]
    for name in OPTIONS:
        option = f"--max-{name.replace('_', '-')}"
        assert main([*own, option, "1G"]) == 0
        if name != "payload":
            assert main([*own, option, "1"]) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and option in said
    back = ["decompress", str(tmp_path / "a.ddcm"), str(tmp_path / "b.png"), "-q"]
    assert main([*back, "--max-payload", "0"]) == 2 and not (tmp_path / "b.png").exists()
    assert main([*back, "--max-payload", "1k"]) == 0


@pytest.mark.parametrize("name", ["C=26", "M=10000000", "K=10000000", "T=1000", "K=" + "9" * 5000])
def test_official_names_ask_within_limits(name: str, tmp_path: Path) -> None:
    import tiny_pipelines

    from ddcm_fast.models import wrap_pipeline

    said = {"T": "5", "K": "16", "M": "2", "C": "3"} | dict([name.split("=")])
    folder = "T={T}_in999-0_K={K}_M={M}_C={C}_model=tiny".format(**said)
    (tmp_path / "x.bin").write_bytes(bytes(7))
    with pytest.raises((FormatError, LimitError)):
        own = official.Settings.of_path(f"{folder}/x.bin")
        model = wrap_pipeline(tiny_pipelines.build("sd"))
        official.decode(tmp_path / "x.bin", model, own, limits=Limits(memory=1 << 28, evaluations=100))


@pytest.mark.parametrize("path", sorted((FUZZ / "corpus").glob("*.bin")), ids=lambda path: path.stem)
def test_what_failed_once(path: Path) -> None:
    made = TARGETS[path.stem.split("-")[0]][0]()
    made.run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_targets_accept_and_refuse(name: str) -> None:
    """A hundred cases of each; most of a minute more in .ci/run."""
    import random

    target = TARGETS[name][0]()
    answers = {target.run(target.make(random.Random(f"0/{i}"))) for i in range(100)}
    assert answers == {True, False}


def test_settings_of_limits_are_numbers() -> None:
    assert {field.name for field in dataclasses.fields(Limits)} == {*OPTIONS, "seconds"}
