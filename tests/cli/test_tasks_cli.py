"""ddcm generate, restore and edit: what they write decodes to what they show; errors are one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddcm_fast.cli import main
from ddcm_fast.codec import container

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


def test_what_a_picture_shows_in_its_holes_is_not_used(folder, tmp_path):
    mask = Image.new("L", (8, 8), 255)
    mask.paste(0, (2, 2, 6, 6))
    mask.save(tmp_path / "mask.png")
    image = Image.open(folder / "0000.png")
    files = []
    for grey in (0, 255):
        image.paste(grey, (2, 2, 6, 6))
        image.save(tmp_path / "holes.png")
        command = ["restore", "--model", "digits", "--task", "inpaint", "--mask", str(tmp_path / "mask.png"), "-T", "5"]
        assert main([*command, "--sigma", "0.1", str(tmp_path / "holes.png"), str(tmp_path / "out.png"), *FAST]) == 0
        files.append((tmp_path / "out.ddcm").read_bytes())
    assert files[0] == files[1]


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
        (["restore", "--task", "sr16", "--simulate"], "too few"),
        (["restore", "--task", "sr2", "--simulate", "--sigma", "-1"], "noise level"),
        (["restore", "--task", "sr2", "--quality", "niqe"], "belong to --restorer"),
        (["restore", "--restorer", "denoise:0.3", "--sigma", "0.1"], "belong to --task"),
        (["restore", "--restorer", "denoise:0.3", "--coefficient", "nan"], "finite"),
        (["restore", "--restorer", "none.pt2"], "no such restorer"),
        (["restore", "--restorer", "MASK", "--trust"], "torch.export.save"),
        (["restore", "--restorer", "denoise:0.3", "--quality", "niqe"], "ddcm-fast[quality]"),
        (["restore", "--restorer", "denoise:0.3", "--align"], "ddcm-fast[faces]"),
    ],
)
def test_restore_errors(folder, tmp_path, capsys, monkeypatch, command, message):
    for name in ("pyiqa", "facexlib.utils.face_restoration_helper"):
        monkeypatch.setitem(sys.modules, name, None)
    Image.new("L", (9, 8), 255).save(tmp_path / "mask.png")
    command = [str(tmp_path / "mask.png") if part == "MASK" else part for part in command]
    more = ["--model", "digits", str(folder / "0000.png"), str(tmp_path / "out.png")]
    assert main([*command, *more, *FAST]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"]


def test_faces_are_coded_as_in_the_paper(tmp_path, capsys, monkeypatch):
    asked = []

    def load_quality(name, device):
        asked.append(name)
        return lambda image: image.mean((1, 2, 3))

    monkeypatch.setattr("ddcm_fast.tasks.perceptual.load_quality", load_quality)
    Image.new("RGB", (40, 40), (200, 150, 130)).save(tmp_path / "face.png")
    Image.new("RGB", (40, 50)).save(tmp_path / "person.png")
    command = ["restore", "--model", "gaussian-field", "--restorer", "denoise:0.4", "--faces", "-T", "3", *FAST]
    assert main([*command, str(tmp_path / "face.png"), str(tmp_path / "good.png")]) == 0
    header, _ = container.read((tmp_path / "good.ddcm").read_bytes())
    assert (header.config.kind, header.config.K, header.config.T) == ("gaussian", 4096, 3)
    assert (header.width, header.height) == (512, 512) and asked == ["niqe"]
    capsys.readouterr()
    assert main([*command, str(tmp_path / "person.png"), str(tmp_path / "out.png")]) == 2
    assert "an aligned one is square" in capsys.readouterr().err and not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--t-edit", "5"], "needs a target"),
        (["--t-edit", "99", "--target-label", "1"], "give 0 to 29"),
        (["--t-edit", "5", "--target-label", "11"], "labels 0 to 9"),
        (["--t-edit", "5", "--target-prompt", "a one"], "no prompt"),
    ],
)
@pytest.mark.parametrize("form", ["file", "image"])
def test_edit_errors(folder, tmp_path, capsys, more, message, form):
    coding = [] if form == "file" else ["--model", "digits", "-T", "30", "-K", "8"]
    source = folder / ("0000.ddcm" if form == "file" else "0000.png")
    assert main(["edit", str(source), "--output-dir", str(tmp_path / "o"), *more, *coding, *FAST]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_generate_errors(tmp_path, capsys):
    assert main(["generate", "--model", "digits", "--ccfg", "4", "--output-dir", str(tmp_path), *FAST]) == 2
    assert "give --label" in capsys.readouterr().err


@pytest.mark.slow
def test_files_decode_alone_in_a_new_process(folder, tmp_path):
    """Of every application: no classifier, label, measurement, restorer or source image is at hand there."""
    common = ["--model", "digits", "-T", "8", "-K", "16", *FAST]
    source, out = str(folder / "0000.png"), str(tmp_path)
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    mask = str(tmp_path / "mask.png")
    for command in (
        ["generate", "--label", "4", "--guidance-scale", "3", "--output-dir", f"{out}/label"],
        ["generate", "--label", "4", "--ccfg", "4", "--output-dir", f"{out}/ccfg"],
        ["restore", "--task", "sr2", "--simulate", "--sigma", "0.05", source, f"{out}/sr.png"],
        ["restore", "--task", "inpaint", "--mask", mask, source, f"{out}/inpaint.png"],
        ["restore", "--restorer", "denoise:0.3", source, f"{out}/blind.png"],
        ["edit", source, "--label", "7", "--target-label", "1", "--t-edit", "3", "--output-dir", f"{out}/edit"],
    ):
        assert main([*command, *common]) == 0
    files = sorted(str(p) for p in tmp_path.rglob("*.ddcm"))
    assert len(files) == 7
    alone = tmp_path / "alone"
    alone.mkdir()
    script = (
        "import sys, torch; from ddcm_fast.cli import main\n"
        "torch.set_num_threads(1)\n"
        "for n, f in enumerate(sys.argv[2:]):\n"
        f"    assert main(['decompress', f, f'{{sys.argv[1]}}/{{n}}.png', *{FAST!r}]) == 0\n"
    )
    subprocess.run([sys.executable, "-c", script, str(alone), *files], check=True)
    for number, file in enumerate(files):
        again, shown = Image.open(alone / f"{number}.png"), Image.open(Path(file).with_suffix(".png"))
        assert again.size == shown.size and again.tobytes() == shown.tobytes()
