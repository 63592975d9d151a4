"""A model's folder runs nothing, pickles are loaded only when trusted and then hold tensors only."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_pipelines
import torch

from ddcm_fast.errors import ModelError
from ddcm_fast.models import load_model, trust
from ddcm_fast.models.loading import require_builtin
from ddcm_fast.models.names import WEIGHTS

CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nraise RuntimeError('ran')\n"


class Ran:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ddpm"
    tiny_pipelines.build("ddpm").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


def index(folder, **entries):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def config(folder, **entries):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def load(folder, **options):
    return load_model(folder, device="cpu", dtype="float32", **options)


#: What the index says, files of code, and what the error says.
FOLDERS = [
    ({"_class_name": ["evil", "Evil"]}, ["evil.py"], "which diffusers does not have"),
    ({"_class_name": "Evil"}, ["Evil.py", "pipeline.py"], "which diffusers does not have"),
    ({}, ["None.py"], "is code"),
    ({"unet": ["evil", "UNet2DModel"]}, ["unet/evil.py"], "neither of diffusers"),
    ({"unet": ["diffusers", "UNet2DModel"]}, ["unet/diffusers.py"], "is code"),
    ({"unet": ["os", "system"]}, [], "neither of diffusers"),
    ({"unet": ["evil.evil", "Evil"]}, ["evil.py"], "impossible component"),
    ({"../unet": ["diffusers", "UNet2DModel"]}, [], "impossible component"),
    ({"unet": ["diffusers", "DiffusionPipeline"]}, [], "a pipeline inside"),
    ({"unet": ["pipeline_utils", "DiffusionPipeline"]}, [], "a pipeline inside"),
    ({"unet": ["pipeline_utils", "Path"]}, [], "neither of diffusers"),
]


@pytest.mark.parametrize(("says", "code", "message"), FOLDERS)
def test_folders_with_code_are_refused(folder, says, code, message, monkeypatch):
    monkeypatch.chdir(folder)
    index(folder, **says)
    for name in code:
        (folder / name).write_text(CODE)
    for options in ({}, {"trust": True}):
        with pytest.raises(ModelError, match=message):
            load(folder, **options)
    assert not list(folder.rglob("ran"))


def test_configurations_that_ask_for_more_are_refused(folder):
    config(folder, auto_map={"AutoModel": "evil.Evil"})
    with pytest.raises(ModelError, match="auto_map"):
        load(folder)
    config(folder, auto_map=None, attn_implementation="owner/kernel")
    with pytest.raises(ModelError, match=r"auto_map|attn_implementation"):
        load(folder)
    (folder / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="cannot read"):
        load(folder)
    (folder / "unet" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names another model"):
        load(folder)


def test_an_unused_pipeline_file_and_paths_are_fine(folder):
    (folder / "pipeline.py").write_text(CODE)
    assert load(folder).fingerprint() == load(str(folder)).fingerprint()
    assert not (folder / "ran").exists()
    for option in ("trust_remote_code", "custom_pipeline"):
        with pytest.raises(ModelError, match="runs no code"):
            load(folder, **{option: True})


def test_safety_checkers_are_known():
    pytest.importorskip("transformers")
    assert trust._is_network("stable_diffusion", "StableDiffusionSafetyChecker")


def test_pickled_weights_are_loaded_only_with_trust(saved, folder, tmp_path):
    tiny_pipelines.build("ddpm").save_pretrained(folder, safe_serialization=False)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="--trust"):
        load(folder)
    assert load(folder, trust=True).fingerprint() == load(saved).fingerprint()
    weights = folder / "unet" / "diffusion_pytorch_model.bin"
    for write in (
        lambda: weights.write_bytes(pickle.dumps(Ran(tmp_path / "ran"))),
        lambda: torch.save(Ran(tmp_path / "ran"), weights),
    ):
        write()
        for options in ({}, {"trust": True}):
            with pytest.raises(ModelError, match="cannot load"):
                load(folder, **options)
    assert not (tmp_path / "ran").exists()


def test_pickled_checkpoints_and_single_networks(tmp_path):
    path = tmp_path / "256x256_diffusion_uncond.pt"
    torch.save(Ran(tmp_path / "ran"), path)
    with pytest.raises(ModelError, match="--trust"):
        load_model(path, device="cpu")
    with pytest.raises(ModelError, match="does not hold the weights"):
        load_model(path, device="cpu", trust=True)
    own = shutil.copytree(WEIGHTS / "digits", tmp_path / "own")
    (own / "diffusion_pytorch_model.safetensors").rename(own / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="--trust"):
        load(own)
    (own / "diffusion_pytorch_model.bin").rename(own / "diffusion_pytorch_model.safetensors")
    for name in ("DiffusionPipeline", "Evil", "utils"):
        (own / "scheduler_config.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(ModelError, match="scheduler"):
            load(own)
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_are_one_line(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for data in (
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167540\n",
        weights.read_bytes()[:-100],
    ):
        weights.write_bytes(data)
        with pytest.raises(ModelError) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_the_hub_is_asked_only_for_what_the_user_names(tmp_path, monkeypatch):
    import diffusers
    import huggingface_hub

    asked = []
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": ["evil", "Evil"]}))

    def index_only(name, file, **_):
        asked.append((name, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", index_only)
    monkeypatch.setattr(huggingface_hub, "model_info", lambda name: asked.append((name, "info")))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *_, **__: asked.append("everything"))
    for name in ("owner/name", "/srv/model", "../model", ".", "photo2", "owner/name#tile=4,2", "photo/../x"):
        with pytest.raises(ModelError, match="--model"):
            require_builtin(name)
    for name in ("photo", "digits", "gaussian-field", "photo#tile=64,16"):
        require_builtin(name)
    assert asked == []
    with pytest.raises(ModelError, match="which diffusers does not have"):
        load_model("owner/name", device="cpu")
    assert asked == [("owner/name", "info"), ("owner/name", "model_index.json")]
