"""ddcm generate, restore and edit: what they write decodes to what they show; errors are one line."""

import pytest
import torch
from PIL import Image

from ddcm_fast.cli import main

FAST = ["--device", "cpu", "-q"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("digits")
    command = ["generate", "--model", "digits", "--label", "7", "--guidance-scale", "2", "-K", "64", "-T", "30"]
    assert main([*command, "--output-dir", str(path), *FAST]) == 0
    return path


def same_as_its_file(image, tmp_path):
    assert main(["decompress", str(image.with_suffix(".ddcm")), str(tmp_path / "again.png"), *FAST]) == 0
    return Image.open(tmp_path / "again.png") == Image.open(image)


def test_generate(folder, tmp_path):
    assert Image.open(folder / "0000.png").size == (8, 8)
    assert same_as_its_file(folder / "0000.png", tmp_path)


def test_generate_with_compressed_guidance(tmp_path):
    command = ["generate", "--model", "digits", "--label", "3", "--ccfg", "4", "-K", "64", "-T", "10"]
    assert main([*command, "--output-dir", str(tmp_path / "o"), *FAST]) == 0
    assert same_as_its_file(tmp_path / "o" / "0000.png", tmp_path)


@pytest.mark.parametrize("form", ["file", "image"])
def test_edit(folder, tmp_path, capsys, form):
    source = folder / ("0000.ddcm" if form == "file" else "0000.png")
    more = [] if form == "file" else ["--model", "digits", "--label", "7", "-T", "20", "-K", "16"]
    command = ["edit", str(source), *more, "--target-label", "1", "9", "--t-edit", "5", "--output-dir", str(tmp_path)]
    assert main([*command, *FAST]) == 0
    for label in (1, 9):
        assert same_as_its_file(tmp_path / f"0000_{label}_5.png", tmp_path)
    assert main(["info", str(tmp_path / "0000_9_5.ddcm")]) == 0
    said = capsys.readouterr().out
    assert "condition  label 7" in said and "from step 5 on: label 9" in said


def test_restore_a_task(folder, tmp_path, capsys):
    command = ["restore", "--model", "digits", "--task", "sr2", "--simulate", "--sigma", "0.05", "-T", "20", "-K", "64"]
    assert main([*command, str(folder / "0000.png"), str(tmp_path / "out.png"), "--device", "cpu"]) == 0
    assert "PSNR" in capsys.readouterr().out
    assert Image.open(tmp_path / "out_measured.png").size == (4, 4)
    assert same_as_its_file(tmp_path / "out.png", tmp_path)
    command = ["restore", "--model", "digits", "--task", "sr2", "-T", "5", str(tmp_path / "out_measured.png")]
    assert main([*command, str(tmp_path / "big.png"), *FAST]) == 0
    assert Image.open(tmp_path / "big.png").size == (8, 8)


def test_restore_holes(folder, tmp_path):
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    command = ["restore", "--model", "digits", "--task", "inpaint", "--mask", str(tmp_path / "mask.png"), "-T", "5"]
    assert main([*command, str(folder / "0000.png"), str(tmp_path / "out.png"), *FAST]) == 0


def test_restore_blind(folder, tmp_path):
    command = ["restore", "--model", "digits", "--restorer", "denoise:0.3", "-T", "10", "-K", "64"]
    assert main([*command, str(folder / "0000.png"), str(tmp_path / "out.png"), *FAST]) == 0
    assert same_as_its_file(tmp_path / "out.png", tmp_path)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["restore", "--task", "sr2", "--restorer", "x.pt2"], "not both"),
        (["restore"], "--task for a known"),
        (["restore", "--task", "zoom"], "unknown task 'zoom'"),
        (["restore", "--task", "inpaint"], "needs a mask"),
        (["restore", "--task", "inpaint", "--mask", "MASK"], "resize the mask"),
        (["restore", "--task", "color"], "three channels"),
        (["restore", "--restorer", "none.pt2"], "no such restorer"),
        (["restore", "--restorer", "denoise:0.3", "--quality", "niqe"], "ddcm-fast[quality]"),
        (["restore", "--restorer", "denoise:0.3", "--align"], "ddcm-fast[faces]"),
    ],
)
def test_restore_errors(folder, tmp_path, capsys, monkeypatch, command, message):
    import sys

    for name in ("pyiqa", "facexlib.utils.face_restoration_helper"):
        monkeypatch.setitem(sys.modules, name, None)
    Image.new("L", (9, 8), 255).save(tmp_path / "mask.png")
    command = [str(tmp_path / "mask.png") if part == "MASK" else part for part in command]
    more = ["--model", "digits", str(folder / "0000.png"), str(tmp_path / "out.png")]
    assert main([*command, *more, *FAST]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--t-edit", "5"], "needs a target"),
        (["--t-edit", "99", "--target-label", "1"], "steps 0 to 29"),
        (["--t-edit", "5", "--target-label", "11"], "labels 0 to 9"),
        (["--t-edit", "5", "--target-prompt", "a one"], "no prompt"),
    ],
)
def test_edit_errors(folder, tmp_path, capsys, more, message):
    assert main(["edit", str(folder / "0000.ddcm"), "--output-dir", str(tmp_path), *more, *FAST]) == 2
    assert message in capsys.readouterr().err


def test_generate_errors(tmp_path, capsys):
    assert main(["generate", "--model", "digits", "--ccfg", "4", "--output-dir", str(tmp_path), *FAST]) == 2
    assert "give --label" in capsys.readouterr().err
