"""Data sets by name, on stand-ins of the published layouts: which images are taken, and what becomes of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcm_fast.bulk.recipes import RECIPES, recipe, square
from ddcm_fast.errors import ConfigError, DDCMWarning, InputError


def ramp(width: int, height: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8))


def lay(folder: Path, *names: str, width: int = 60, height: int = 40) -> Path:
    """A folder with small pictures of those names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ramp(width, height).save(folder / name)
    return folder


def names(name: str, *inputs: Path) -> list[str]:
    with pytest.warns(DDCMWarning, match="were found"):
        return [item.name for item in recipe(name).items(inputs)]


def test_which_images_are_the_set(tmp_path: Path) -> None:
    kodak = lay(tmp_path / "kodak", "kodim01.png", "kodim24.png", "kodim25.png", "thumbs/small.png")
    assert names("kodak24", kodak) == ["kodim01", "kodim24"]
    div2k = ("DIV2K_train_HR/0800.png", "DIV2K_valid_HR/0801.png", "DIV2K_valid_HR/0900.png", "DIV2K_valid_HR/0901.png")
    low = "DIV2K_valid_LR_bicubic/X2/0801x2.png"
    assert names("div2k", lay(tmp_path / "div2k", *div2k, low)) == ["DIV2K_valid_HR/0801", "DIV2K_valid_HR/0900"]
    assert names("div2k", tmp_path / "div2k/DIV2K_valid_HR") == ["0801", "0900"]
    test = ("CLIC2020Mobile_test/mobile/ab.png", "CLIC2020Professional_test/professional/cd.png")
    clic = lay(tmp_path / "clic", *test, "mobile_train_2020/train/ef.png")
    assert names("clic2020", clic) == [name.removesuffix(".png") for name in test]


def test_imagenet_by_its_list_and_from_its_archive(tmp_path: Path) -> None:
    folder = lay(tmp_path / "imagenet", *(f"ILSVRC2012_val_0000000{i}.JPEG" for i in range(1, 5)), "other.JPEG")
    assert len(names("imagenet256", folder)) == 4
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as archive:
        archive.add(folder / "ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00000002.JPEG")
    assert names("imagenet256", tmp_path / "ILSVRC2012_img_val.tar") == ["ILSVRC2012_img_val/ILSVRC2012_val_00000002"]
    (folder / "imagenet_val_1k.txt").write_text("ILSVRC2012_val_00000003.JPEG 0\nILSVRC2012_val_00000001.JPEG 1\n\n")
    assert names("imagenet256", folder) == ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000003"]


def test_a_whole_set_is_taken_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = lay(tmp_path, *(f"kodim{i:02}.png" for i in range(1, 25)))
    assert len(recipe("kodak24").items([folder])) == 24 and not recwarn.list


def test_pictures_become_square(tmp_path: Path) -> None:
    lay(tmp_path, "DIV2K_valid_HR/0801.png", width=1536, height=1024)
    with pytest.warns(DDCMWarning):
        (item,) = recipe("div2k").items([tmp_path])
    made = Image.open(io.BytesIO(item.read()))
    assert made.size == (512, 512) and made.mode == "RGB" and item.read() == item.read()
    red, green = (np.asarray(made)[..., i].astype(float) for i in range(2))
    # The middle 1024 of 1536 columns, all 1024 rows, at half the size.
    assert np.abs(red.mean(0) - np.linspace(255 / 6, 255 * 5 / 6, 512)).max() < 1
    assert np.abs(green.mean(1) - np.linspace(0, 255, 512)).max() < 1


def test_a_square_that_fits_is_only_cut() -> None:
    image = ramp(768, 512)
    assert square(image, 512).tobytes() == image.crop((128, 0, 640, 512)).tobytes()
    assert square(ramp(40, 60), 64).size == (64, 64)


def test_what_is_no_recipe_or_no_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'coco': choose among kodak24, div2k"):
        recipe("coco")
    for name in RECIPES:
        with pytest.raises(InputError, match=f"no image of {name}; name a folder with"):
            recipe(name).items([lay(tmp_path / name, "holiday.png")])


def test_commands_take_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from ddcm_fast.cli import main

    monkeypatch.chdir(tmp_path)
    lay(Path("kodak"), "kodim01.png", "kodim02.png", "other.png")
    assert main(["eval", "kodak", "--recipe", "kodak24", "--output", "out", "--codecs", "jpeg", "--bpp", "1"]) == 0
    out, err = capsys.readouterr()
    assert "kodak24 has 24 images, and 2 were found" in err and out.startswith("jpeg")
    assert sorted(path.name for path in Path("out/jpeg/1").iterdir()) == ["kodim01.png", "kodim02.png"]
    assert Image.open("out/jpeg/1/kodim01.png").size == (512, 512)
    assert json.loads(Path("out/summary.json").read_text())["recipe"] == "kodak24"
    compress = ["compress", "kodak", "coded", "--recipe", "kodak24", "--model", "gaussian-field", "-T", "2", "-q"]
    assert main([*compress, "--preset", "ddcm", "-K", "16", "--limit", "1"]) == 0
    assert [path.name for path in Path("coded").glob("*.ddcm")] == ["kodim01.ddcm"]
    assert main(["info", "coded/kodim01.ddcm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["width"] == 512
    for wrong, says in (
        (["eval", "kodak", "--output", "new", "--recipe", "coco"], "unknown recipe"),
        (["eval", "kodak", "--output", "new", "--recipe", "kodak24", "--crop", "64"], "--crop is 64"),
        (["eval", "kodak", "--output", "new", "--recipe", "div2k"], "no image of div2k"),
        (["compress", "--dataset", "kodak", "new", "--recipe", "kodak24"], "--dataset kodak"),
        (["compress", "kodak/other.png", "new.ddcm", "--recipe", "kodak24"], "--recipe is for many"),
    ):
        assert main(wrong) == 2
        assert says in capsys.readouterr().err
