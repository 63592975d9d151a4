"""FID and KID of pictures and of their patches: which patches, what torch-fidelity is given, and the commands."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddcm_fast.cli import main
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError
from ddcm_fast.evaluation.sets import Pictures, boxes, compare


def noise(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reads(*images: Image.Image) -> list[Callable[[], Image.Image]]:
    return [partial(Image.Image.copy, image) for image in images]


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in of torch-fidelity whose features are the mean colours, and whose FID is their distance; its calls."""
    calls: list[dict[str, Any]] = []
    kept: dict[tuple[str, str], torch.Tensor] = {}

    def features(data: Any) -> torch.Tensor:
        samples = [data[i] for i in range(len(data))]
        assert all(one.dtype == torch.uint8 and one.shape[0] == 3 and one.device.type == "cpu" for one in samples)
        return torch.stack(samples).float().mean((2, 3))

    def calculate_metrics(**settings: Any) -> dict[str, float]:
        calls.append(settings)
        place = (settings["cache_root"], settings["input1_cache_name"])
        first = kept.get(place) if settings["cache"] else None
        if first is None:
            first = kept[place] = features(settings["input1"])
        distance = float((first.mean(0) - features(settings["input2"]).mean(0)).norm())
        return {"frechet_inception_distance": distance, "kernel_inception_distance_mean": float("nan")}

    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(calculate_metrics=calculate_metrics))
    return calls


def test_patches_are_a_grid_and_one_half_a_patch_further() -> None:
    assert boxes(8, 8, 8) == [(0, 0, 8, 8)]
    assert boxes(12, 12, 8) == [(0, 0, 8, 8), (4, 4, 12, 12)]
    assert boxes(7, 100, 8) == []
    assert len(boxes(512, 768, 256)) == 2 * 3 + 1 * 2
    assert len(boxes(512, 512, 64)) == 64 + 49 and len(boxes(512, 512, 128)) == 16 + 9
    assert all(x1 - x0 == y1 - y0 == 16 and x1 <= 50 and y1 <= 37 for x0, y0, x1, y1 in boxes(50, 37, 16))


def test_sets_of_pictures_and_patches() -> None:
    first, small, second = noise(1), noise(2, 15, 40), noise(3, 17, 16)
    whole, patches = Pictures(reads(first, small)), Pictures(reads(first, small, second), 16)
    assert len(whole) == 2 and torch.equal(whole[1], torch.from_numpy(np.array(small)).permute(2, 0, 1))
    assert len(patches) == 3 * 2 + 2 * 2 + 1 and str(patches) == "11 patches"
    assert torch.equal(patches[6], torch.from_numpy(np.array(first.crop((8, 8, 24, 24)))).permute(2, 0, 1))
    assert torch.equal(patches[10], torch.from_numpy(np.array(second.crop((0, 0, 16, 16)))).permute(2, 0, 1))
    with pytest.raises(InputError, match="none of 1 pictures is as large as a patch of 16x16"):
        Pictures(reads(small), 16)


def test_what_is_compared(fidelity: list[dict[str, Any]], tmp_path: Path) -> None:
    images, darker = [noise(1), noise(2)], [noise(1).point(lambda v: v // 2), noise(2)]
    names = ["patch-fid", "kid", "fid", "patch-kid"]
    found = compare(names, reads(*images), reads(*darker), 16, kept=tmp_path)
    assert list(found) == names and found["kid"] is found["patch-kid"] is None  # no number: nothing said
    whole, patches = fidelity
    assert (len(whole["input1"]), len(patches["input1"])) == (2, 20) and (whole["fid"], whole["kid"]) == (True, True)
    assert whole["kid_subset_size"] == 2 and patches["kid_subset_size"] == 20
    assert whole["cache_root"] != patches["cache_root"] and whole["save_cpu_ram"]
    assert found["fid"] is not None and found["fid"] > 20
    assert compare(["patch-fid"], reads(*images), reads(*images), 16) == {"patch-fid": 0.0}
    assert not fidelity[-1]["cache"]
    with pytest.raises(ConfigError, match="unknown metric 'psnr'"):
        compare(["psnr"], [], [])


def test_the_commands_score_sets(
    fidelity: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for i in range(2):
        noise(i, 96, 80).save(f"in/{i}.png")
    command = ["eval", "in", "--output", "out", "--codecs", "jpeg,webp", "--bpp", "2,4", "--crop", "64"]
    assert main([*command, "--metrics", "psnr,patch-fid,fid", "--patch", "32"]) == 0
    out = capsys.readouterr().out
    assert out.count("patch-fid") == 4
    summary = json.loads(Path("out/summary.json").read_text())
    assert all(point["patch-fid"] > 0 and point["fid"] > 0 for point in summary["means"])
    assert summary["command"].endswith("--patch 32")
    assert "patch-fid" in Path("out/means.csv").read_text()
    assert len(json.loads(Path("out/jpeg.json").read_text())["results"]["patch-fid"]) == 2
    patched = [call for call in fidelity if call["cache_root"].endswith("patch-")]
    assert len(patched) == 4 and all(len(call["input2"]) == 2 * 5 for call in patched)
    assert all(call["input1"][0].shape == (3, 32, 32) for call in patched)  # of the crops

    fidelity.clear()
    assert main(["score", "in", "in", "--metrics", "patch-fid,fid", "--patch", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"patch-fid": 0.0, "fid": 0.0}
    assert len(fidelity[1]["input1"]) == 2 and not any(call["cache"] for call in fidelity)


def test_recipes_have_patches_of_their_own(
    fidelity: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kodak").mkdir()
    noise(1, 600, 512).save("kodak/kodim01.png")
    command = ["eval", "kodak", "--recipe", "kodak24", "--codecs", "jpeg", "--bpp", "4", "-q"]
    assert main([*command, "--output", "out", "--metrics", "patch-fid"]) == 0
    assert len(fidelity[0]["input1"]) == 64 + 49 and fidelity[0]["input1"][0].shape == (3, 64, 64)


def test_what_goes_wrong(
    fidelity: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    noise(1).save("a.png")
    command = ["eval", "a.png", "--output", "out", "--codecs", "jpeg", "--bpp", "4"]
    # The table is written; the warning says why it has a gap.
    assert main([*command, "--metrics", "psnr,patch-fid"]) == 0
    out, err = capsys.readouterr()
    assert "as large as a patch of 256x256" in err and err.count("\n") == 1 and "patch-fid" not in out
    Path("weights.pth").write_bytes(b"")
    for more, says in (
        (["--metrics", "patch-fid", "--patch", "0"], "--patch is 0"),
        (["--metrics", "fid", "--inception", "weights.pth"], "with --trust"),
    ):
        for one in ([*command[:2], "--output", "new", *command[4:]], ["score", ".", "."]):
            assert main([*one, *more]) == 2
            err = capsys.readouterr().err
            assert says in err and err.count("\n") == 1 and not Path("new").exists()
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert main(["eval", "a.png", "--output", "new", "--metrics", "patch-fid"]) == 2
    assert "ddcm-fast[metrics]" in capsys.readouterr().err and not Path("new").exists()
    with pytest.raises(MissingExtraError):
        compare(["fid"], reads(noise(1)), reads(noise(2)))


@pytest.mark.slow
def test_with_torch_fidelity_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its network with random weights, and FID from the network's features by its definition."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    linalg = pytest.importorskip("scipy.linalg")
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    with monkeypatch.context() as patched:  # it loads none: those that it begins with are taken
        patched.setattr(torch, "load", lambda *_, **__: None)
        patched.setattr(inception, "load_state_dict", lambda *_, **__: None)
        network = inception("inception", ["2048"], feature_extractor_weights_path=str(weights))
    torch.save(network.state_dict(), weights)
    first, second = reads(noise(1), noise(2)), reads(noise(3), noise(4).point(lambda v: v // 2))
    found = compare(["patch-fid", "patch-kid"], first, second, 16, weights, tmp_path / "kept")
    again = compare(["patch-fid"], first, second, 16, weights, tmp_path / "kept")  # with the features kept
    assert found["patch-fid"] == pytest.approx(again["patch-fid"]) and found["patch-kid"] is not None
    means, spreads = [], []
    for one in (first, second):
        data = Pictures(one, 16)
        features = network(torch.stack([data[i] for i in range(len(data))]))[0].double().numpy()
        means.append(features.mean(0))
        spreads.append(np.cov(features, rowvar=False))
    root = linalg.sqrtm(spreads[0] @ spreads[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * root)
    assert found["patch-fid"] == pytest.approx(expected, rel=0.05)
