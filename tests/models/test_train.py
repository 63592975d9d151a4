"""The training script: exact resume, loadable weights, the evaluation table, user errors."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddcm_fast.models.train import command, data, loop, pages, photo

TINY = {
    "_class_name": "UNet2DModel",
    "sample_size": 16,
    "in_channels": 12,
    "out_channels": 12,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "add_attention": False,
}


def _photo(rng: np.random.Generator, width: int, height: int) -> bytes:
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos.tar`` (12 photographs, a text file), ``eval/`` and ``tiny.json``."""
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for index in range(12):
            encoded = _photo(rng, 96 + 8 * (index % 3), 80)
            info = tarfile.TarInfo(f"set/{index:02d}.png")
            info.size = len(encoded)
            tar.addfile(info, io.BytesIO(encoded))
        tar.addfile(tarfile.TarInfo("set/notes.txt"), io.BytesIO())
    (folder / "eval").mkdir()
    for index in range(3):
        (folder / "eval" / f"{index}.png").write_bytes(_photo(rng, 80, 64))
    (folder / "tiny.json").write_text(json.dumps(TINY))
    return folder


def _args(work: Path, output: Path, *more: str) -> list[str]:
    return [
        *("photo", "--data", str(work / "photos.tar"), "--output", str(output)),
        *("--config", str(work / "tiny.json"), "--steps", "6", "--batch", "4"),
        *("--crop", "32", "48", "--holdout", "3", "--warmup", "2", "--log-every", "2"),
        *("--dtype", "fp32", "--threads", "1"),
        *more,
    ]


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    output = work / "straight"
    assert command.main(_args(work, output)) == 0
    return output


def test_resume_continues_exactly(work: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    output = work / "resumed"
    assert command.main(_args(work, output, "--stop-after", "3")) == 0
    assert "stopped and saved at step 3" in capsys.readouterr().out
    assert command.main(_args(work, output, "--resume")) == 0
    assert "done: 6 steps" in capsys.readouterr().out
    one = torch.load(trained / loop.STATE_NAME, weights_only=True)
    two = torch.load(output / loop.STATE_NAME, weights_only=True)
    assert one["step"] == two["step"] == 6
    for part in ("model", "ema"):
        for name, value in one[part].items():
            assert torch.equal(value, two[part][name]), (part, name)
    assert torch.equal(one["draws"], two["draws"])
    assert torch.equal(one["noises"], two["noises"])


def test_saved_folder_loads_and_holds_the_average(trained: Path) -> None:
    from diffusers import UNet2DModel

    model = UNet2DModel.from_pretrained(trained, local_files_only=True)
    state = torch.load(trained / loop.STATE_NAME, weights_only=True)
    moved = 0
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state["ema"][name])
        moved += not torch.equal(value, state["model"][name])
    assert moved > 0
    assert not list(trained.glob("*.saving")) and not (trained / ".saving").exists()


def test_init_starts_from_the_weights(work: Path, trained: Path) -> None:
    output = work / "further"
    assert command.main(_args(work, output, "--init", str(trained), "--lr", "1e-30")) == 0
    assert "_name_or_path" not in json.loads((output / "config.json").read_text())
    before, after = photo.load_model(trained), photo.load_model(output)
    for name, value in before.state_dict().items():
        torch.testing.assert_close(value, after.state_dict()[name])


def test_a_network_of_more_channels_learns_v(work: Path, capsys: pytest.CaptureFixture) -> None:
    """A space-to-depth of 4; the folder says what it predicts, and the same weights go on as nothing else."""
    output, config = work / "v", work / "patch4.json"
    config.write_text(json.dumps({**TINY, "in_channels": 48, "out_channels": 48}))
    given = ["--prediction", "v_prediction", "--config", str(config)]
    assert command.main(_args(work, output, *given)) == 0
    assert json.loads((output / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
    assert photo.patch_of(photo.load_model(output)) == 4 and photo.prediction_of(output) == "v_prediction"
    evaluation = ["--evaluate", str(work / "eval"), "--init", str(output), "--eval-size", "32", "--dtype", "fp32"]
    assert command.main(["photo", *evaluation]) == 0
    row = capsys.readouterr().out.strip().splitlines()[-1]
    values = [float(cell) for cell in row.strip("|").split("|")[1:]]
    assert values[-1] < 0.05  # at t = 900 the state says nearly all of epsilon, whatever v is
    assert command.main(_args(work, work / "other", "--init", str(output))) == 2
    assert "predicts v_prediction: give --prediction v_prediction" in capsys.readouterr().err


def test_epsilon_of_v() -> None:
    x0, eps = torch.randn(2, 5, 3, dtype=torch.float64)
    abar = torch.tensor(0.3, dtype=torch.float64)
    noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    v = abar.sqrt() * eps - (1 - abar).sqrt() * x0
    torch.testing.assert_close(photo.epsilon_of(v, noisy, abar, "v_prediction"), eps)
    assert photo.epsilon_of(eps, noisy, abar, "epsilon") is eps


def test_evaluate_prints_every_timestep(work: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    for target, images in (("eval", 3), ("photos.tar", 3)):
        more = ["--init", str(trained), "--eval-size", "64", "--holdout", "3", "--dtype", "fp32"]
        assert command.main(["photo", "--evaluate", str(work / target), *more]) == 0
        title, head, _, row = capsys.readouterr().out.strip().splitlines()
        assert f"{images} centre crops of 64 pixels" in title
        cells = [c.strip() for c in head.strip("|").split("|")]
        assert cells == ["t", *(str(t) for t in photo.EVAL_TIMESTEPS)]
        values = [float(c) for c in row.strip("|").split("|")[1:]]
        assert len(values) == len(photo.EVAL_TIMESTEPS)
        assert all(0.0 < v < 10.0 for v in values)


def test_evaluation_does_not_depend_on_the_batch(work: Path, trained: Path) -> None:
    crops = data.load_eval_folder(work / "eval", 32)
    assert crops.shape == (3, 3, 32, 32) and crops.dtype == torch.uint8
    model = photo.load_model(trained)
    one = photo.evaluate(model, crops, dtype="fp32", batch=1)
    many = photo.evaluate(model, crops, dtype="fp32", batch=3)
    assert one.mse == pytest.approx(many.mse, rel=1e-5)


def test_evaluation_of_a_zero_model_is_the_noise_power(trained: Path) -> None:
    model = photo.load_model(trained)
    for parameter in model.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    crops = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    table = photo.evaluate(model, crops, timesteps=(20, 900), dtype="fp32")
    assert table.mse == pytest.approx((1.0, 1.0), abs=0.03)


def test_held_out_photographs_are_not_trained_on(work: Path) -> None:
    cache = data.load_photos(work / "photos.tar", holdout=3)
    assert (len(cache.train), len(cache.held_out)) == (9, 3)
    only = data.load_photos(work / "photos.tar", holdout=3, train=False)
    assert not only.train
    for kept, again in zip(cache.held_out, only.held_out, strict=True):
        assert torch.equal(kept, again)
        assert not any(t.shape == kept.shape and torch.equal(t, kept) for t in cache.train)


def test_short_side_limits_the_cache(work: Path) -> None:
    cache = data.load_photos(work / "photos.tar", short_side=40, holdout=1)
    assert all(min(p.shape[:2]) == 40 for p in cache.train)


def test_batches_are_crops_of_the_photographs() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).repeat(64, 1)
    ramps = torch.stack([ramp, ramp.T, torch.full_like(ramp, 255)], dim=2)
    # A quarter of the photograph is too small for a crop, so that share falls back to half.
    # The second one is of another size, so that crops at its pixels' place in the run of pixels are told apart.
    pictures = data.Pictures([ramps, ramps[:48]], [], "cpu")
    batch = pictures.sample(16, 32, (1.0, 1.0, 1.0), torch.Generator().manual_seed(0))
    assert batch.shape == (16, 3, 32, 32)
    image = (batch + 1) * 127.5
    torch.testing.assert_close(image[:, 2], torch.full((16, 32, 32), 255.0))
    across = image[:, 0].diff(dim=2).round().unique().tolist()
    down = image[:, 1].diff(dim=1).round().unique().tolist()
    assert across == [-2.0, -1.0, 1.0, 2.0]  # flipped or not, averaged down or not
    assert down == [1.0, 2.0]  # never upside down


def test_a_share_of_the_crops_is_of_pages() -> None:
    photo_, page = (torch.full((40, 40, 3), value, dtype=torch.uint8) for value in (10, 200))
    pictures = data.Pictures([photo_], [page], "cpu")
    batch = pictures.sample(400, 16, (1.0,), torch.Generator().manual_seed(0), 0.25)
    means = ((batch + 1) * 127.5).mean(dim=(1, 2, 3)).round()
    assert set(means.tolist()) == {10.0, 200.0}
    assert 70 < int((means == 200).sum()) < 130


def test_pages_are_drawn_alike_from_a_seed() -> None:
    drawn = pages.draw_pages(12, seed=3)
    again = pages.draw_pages(12, seed=3)
    assert all(page.dtype == torch.uint8 and page.shape == (288, 320, 3) for page in drawn)
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
    assert not torch.equal(drawn[0], pages.draw_pages(1, seed=4)[0])
    assert all(page.float().std() > 0 for page in drawn)  # something is on each of these
    assert pages.draw_pages(1, seed=3, least=400)[0].shape == (400, 400, 3)


def test_model_space_keeps_the_norm() -> None:
    crops = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    image = crops.double() / 127.5 - 1.0
    out = data.to_model(crops, 2)
    assert out.shape == (2, 12, 8, 8) and data.to_model(crops, 4).shape == (2, 48, 4, 4)
    torch.testing.assert_close(out.double().square().sum(), image.square().sum(), rtol=1e-5, atol=0)


def test_timesteps_are_uniform_in_log_snr() -> None:
    abar = photo.alphas_cumprod()
    assert abar.shape == (1000,) and abar[0] == pytest.approx(1 - 1e-4)
    density = photo.timestep_density(abar, (10, 600), 0.0)
    assert density.sum() == pytest.approx(1.0)
    assert density[:10].sum() == 0.0 == density[601:].sum()
    log_snr = np.log(abar / (1 - abar))
    share = density[20:401].sum()
    assert share == pytest.approx((log_snr[20] - log_snr[400]) / (log_snr[10] - log_snr[600]), 0.02)
    flat = photo.timestep_density(abar, (10, 600), 1.0)
    np.testing.assert_allclose(flat, 1e-3)
    weight = photo.loss_weights(abar, 0.25, density)
    assert (weight * density).sum() == pytest.approx(1.0)
    assert weight[400] > weight[20] > 0.0
    np.testing.assert_allclose(photo.loss_weights(abar, 0.0, density), 1.0)


def test_learning_rate_warms_up_and_ends_low() -> None:
    config = photo.TrainConfig(steps=100, lr=1.0, warmup=10, final_lr=0.01)
    assert loop.learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert loop.learning_rate(config, 9, 0.0) == pytest.approx(1.0)
    assert loop.learning_rate(config, 99, 1.0) == pytest.approx(0.01)


def test_pauses_do_not_count_as_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    clock = loop._Clock()
    now[0] = 2.0
    assert clock.tick() == 2.0
    now[0] = 2002.0
    assert clock.tick() == 2.0 + loop.STALL_SECONDS


def test_minutes_end_a_run(work: Path, capsys: pytest.CaptureFixture) -> None:
    args = _args(work, work / "timed", "--minutes", "1e-9", "--steps", "100000")
    assert command.main(args) == 0
    out = capsys.readouterr().out
    assert "done: 0 steps" in out or "done: 1 steps" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data", "no-such.tar"], "no such tar file"),
        (["--device", "abacus"], "cannot use device"),
        (["--init", "no-such-model"], "no model in"),
        (["--config", "no-such.json"], "cannot build a model"),
        (["--resume"], "cannot resume from"),
        (["--crop", "20"], "multiples of 16"),
        (["--crop", "256"], "no training photograph"),
        (["--holdout", "12"], "too few"),
        (["--pages", "1"], "--pages must lie in"),
        (["--pages", "0.5", "--page-count", "0"], "--page-count must be"),
        (["--holdout", "0"], "--holdout must be"),
        (["--lr", "0"], "--lr must be positive"),
        (["--t-range", "600", "10"], "t range"),
        (["--evaluate", "no-such-folder"], "no such folder"),
    ],
)
def test_user_errors_are_one_line(work: Path, change: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert command.main(_args(work, work / "errors", *change)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_training_needs_an_end(work: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["photo", "--data", str(work / "photos.tar"), "--output", str(work / "errors")]
    assert command.main(args) == 2
    assert "--steps, --minutes or both" in capsys.readouterr().err
    assert command.main(["photo"]) == 2
    assert "--data and --output" in capsys.readouterr().err


def test_unreadable_archives_are_named(work: Path, capsys: pytest.CaptureFixture) -> None:
    (work / "bad.tar").write_bytes(b"not a tar" * 200)
    args = _args(work, work / "errors", "--data", str(work / "bad.tar"))
    assert command.main(args) == 2
    assert "not a readable tar file" in capsys.readouterr().err
    with tarfile.open(work / "broken.tar", "w") as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"oops"))
    args = _args(work, work / "errors", "--data", str(work / "broken.tar"), "--holdout", "1")
    assert command.main(args) == 2
    assert "cannot decode a.png" in capsys.readouterr().err


def test_the_built_in_shape_is_the_shipped_one() -> None:
    config = json.loads((photo.BUILT_IN / "config.json").read_text())
    for key, value in photo.PHOTO_CONFIG.items():
        assert config[key] == value
