"""The DDCM authors' files, against a plain re-implementation of their decoder on diffusers' DDIM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from torch import Tensor

from ddcm_fast.codec import official
from ddcm_fast.codec.official import Settings
from ddcm_fast.errors import ConfigError, FormatError
from ddcm_fast.models import wrap_pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipelines.build("sd")


def by_hand(pipe: Any, bits: str, s: Settings, prompts: tuple[str, str] = ("", ""), t_edit: int = 0) -> Tensor:
    """Decoding as their code does it: global seeds, K x D tensors, DDIM's step, the prompts before and from t_edit."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace", clip_sample=False, set_alpha_to_one=False
    )
    scheduler.set_timesteps(s.T)
    width, at = (s.K - 1).bit_length(), 0

    def take(n: int) -> int:
        nonlocal at
        at += n
        return int(bits[at - n : at], 2)

    without, *told = (pipe.encode_prompt(p, torch.device("cpu"), 1, False)[0] for p in ("", *prompts))
    torch.manual_seed(official.INITIAL_SEED)
    x = torch.randn(1, 4, 8, 8)
    grid = torch.linspace(0, 1, 2**s.C)
    for i, t in enumerate(scheduler.timesteps):
        torch.manual_seed(i)
        coded = bool(s.high >= t >= s.low)
        noise = torch.randn(s.K if coded else 1, 4, 8, 8)
        z = noise[0]
        if coded and t >= 1:
            pairs = [(1, take(width))] + [(take(s.C), take(width)) for _ in range(s.M - 1)]
            z = noise[pairs[0][1]]
            for code, k in pairs[1:]:
                if code == 0:
                    break
                z = z * grid[code].sqrt() + noise[k] * (1 - grid[code]).sqrt()
                z = z / z.std()
        with torch.no_grad():
            eps = pipe.unet(x, t, encoder_hidden_states=without).sample
            if s.cfg is not None:
                eps = eps + s.cfg * (pipe.unet(x, t, encoder_hidden_states=told[i >= t_edit]).sample - eps)
        x = scheduler.step(eps, t, x, eta=1.0, variance_noise=z[None]).prev_sample
    with torch.no_grad():
        return pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)[0]


@pytest.mark.parametrize(
    "settings",
    [
        Settings(20, 999, 0, 64, model="stable-diffusion-2-1"),
        Settings(15, 999, 0, 100, model="tiny"),
        Settings(10, 800, 200, 32, M=3, C=2, model="tiny"),
        Settings(10, 999, 0, 32, M=2, C=3, model="tiny"),
    ],
)
def test_decodes_like_their_code(settings: Settings, pipe: Any, tmp_path: Path) -> None:
    model = wrap_pipeline(pipe)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data, reconstruction = official.encode(image, model, settings)
    path = tmp_path / settings.folder() / "sub" / "kodim01_noise_indices.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert Settings.of_path(path) == settings
    decoded = official.decode(path, model)
    assert torch.equal(decoded, reconstruction)
    coded = [s for s in official.steps_of(model, settings) if s.coded]
    bits = bin(int.from_bytes(data, "big"))[2:].zfill(settings.bits * len(coded))
    torch.testing.assert_close(decoded, by_hand(pipe, bits, settings), atol=2e-4, rtol=0)


def test_editing_files_decode_like_their_code(pipe: Any, tmp_path: Path) -> None:
    from ddcm_fast.sampling.condition import Condition, Edit

    model, settings = wrap_pipeline(pipe), Settings(12, 999, 0, 64, model="tiny", cfg=6.0)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data, reconstruction = official.encode(image, model, settings, prompt="a cat")
    path = tmp_path / settings.folder() / "x_noise_indices.bin"
    path.parent.mkdir()
    path.write_bytes(data)
    assert "_cfg=6.0_" in settings.folder() and Settings.of_path(path) == settings
    assert torch.equal(official.decode(path, model, prompt="a cat"), reconstruction)
    coded = [s for s in official.steps_of(model, settings) if s.coded]
    bits = bin(int.from_bytes(data, "big"))[2:].zfill(settings.bits * len(coded))
    torch.testing.assert_close(reconstruction, by_hand(pipe, bits, settings, ("a cat", "a cat")), atol=5e-4, rtol=0)
    edited = official.decode(path, model, prompt="a cat", edit=Edit(4, Condition("a dog", guidance_scale=6.0)))
    assert not torch.equal(edited, reconstruction)
    torch.testing.assert_close(edited, by_hand(pipe, bits, settings, ("a cat", "a dog"), 4), atol=5e-4, rtol=0)
    with pytest.raises(ConfigError, match="needs its source prompt"):
        official.decode(path, model)
    with pytest.raises(ConfigError, match="has no source prompt"):
        official.decode(path, model, Settings(12, 999, 0, 64, model="tiny"), prompt="a cat")
    assert official.source_prompt(path) is None
    (path.parent / "x_srcprompt.txt").write_text("a cat")
    assert official.source_prompt(path) == "a cat"


def test_command_line(pipe: Any, tmp_path: Path) -> None:
    from PIL import Image

    from ddcm_fast.cli import main

    settings = Settings(5, 999, 0, 16, model="tiny")
    folder = tmp_path / settings.folder()
    folder.mkdir()
    pipe.save_pretrained(tmp_path / "model")
    data, reconstruction = official.encode(torch.zeros(3, 16, 16), wrap_pipeline(pipe), settings)
    (folder / "x_noise_indices.bin").write_bytes(data)
    arguments = [str(folder / "x_noise_indices.bin"), str(tmp_path / "x.png"), "--device", "cpu"]
    assert main(["decompress", *arguments, "--model", str(tmp_path / "model")]) == 0
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "x.png"))).permute(2, 0, 1)
    assert torch.equal(pixels, ((reconstruction + 1) * 127.5).round().to(torch.uint8))


def test_random_letters_survive() -> None:
    s = Settings(10, 999, 0, 100, M=3, C=2)
    g = torch.Generator().manual_seed(1)
    rows = [[int(torch.randint(n, (), generator=g)) for n in (100, 4, 100, 4, 100)] for _ in range(9)]
    for row in rows:
        for m in (1, 3):
            if row[m] == 0:
                row[m:] = [0] * (5 - m)
    rows[0][0] = 0  # leading zeros
    assert official.unpack(official.pack(rows, s), s, 9) == rows


def test_damage_is_told() -> None:
    s = Settings(10, 999, 0, 100)
    data = official.pack([[1]] * 9, s)
    for bad in (data + b"\0", data[1:], b"\xff" * len(data)):
        with pytest.raises(FormatError):
            official.unpack(bad, s, 9)
    with pytest.raises(FormatError, match="folder's name"):
        Settings.of_path("kodim01_noise_indices.bin")
    with pytest.raises(FormatError, match="impossible settings"):
        Settings(10, 0, 999, 64)


def test_names() -> None:
    s = Settings.of_path("out/T=500_in999-0_K=1024_M=2_C=3_model=stable-diffusion-v1-4/a/b_noise_indices.bin")
    assert s == Settings(500, 999, 0, 1024, 2, 3, "stable-diffusion-v1-4")
    assert s.hub_id == "CompVis/stable-diffusion-v1-4"
    edited = Settings.of_path("T=50_in999-0_K=16_M=1_C=3_cfg=7.5_model=stable-diffusion-v1-4/b.bin")
    assert edited.cfg == 7.5 and Settings.of_path(f"{edited.folder()}/b.bin") == edited
    assert Settings(10, 9, 0, 8, model="stable-diffusion-2-1-base").hub_id == "stabilityai/stable-diffusion-2-1-base"


def test_sizes(pipe: Any) -> None:
    model = wrap_pipeline(pipe)
    with pytest.raises(ConfigError, match="16x16"):
        official.encode(torch.zeros(3, 32, 32), model, Settings(5, 999, 0, 16))
    with pytest.raises(ConfigError, match="timesteps"):
        official.steps_of(model, Settings(1001, 999, 0, 16))


def test_torch_randn_does_not_touch_the_global_generator() -> None:
    book = official.TorchRandn(64, 16, torch.float32, torch.device("cpu"))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    residual = torch.ones(2, 64)
    index, sign, score = book.search(residual, 3)
    assert torch.equal(torch.rand(3), wanted)
    scores = book.scores(residual, 3)[:, 0]
    assert torch.equal(scores.argmax(1, keepdim=True), index) and bool((sign == 1).all())
    torch.manual_seed(3)
    atoms = torch.randn(16, 64)
    assert torch.equal(book.atoms(index, 3), atoms[index[:, 0]])
    torch.testing.assert_close(score, (atoms[index[:, 0]] * residual).sum(1, keepdim=True))
    both = book.scores_and_norms(residual, 3)
    assert torch.equal(both[0][:, 0], scores)
    torch.testing.assert_close(both[1][0], atoms.square().sum(1))
