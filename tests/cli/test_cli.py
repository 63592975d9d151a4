"""The command line as a user meets it: results, one-line errors, exit codes, no partial files."""

import json
import shutil

import pytest
import torch
from PIL import Image

from ddcm_fast.cli import main
from ddcm_fast.codec.images import to_pil
from ddcm_fast.models.names import WEIGHTS


@pytest.fixture
def photo(tmp_path):
    coarse = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, (22, 33), mode="bicubic")[0].mul(0.4)
    to_pil(image).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(capsys, *args):
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


def test_compress_info_decompress(photo, tmp_path, capsys):
    packed, back = tmp_path / "photo.ddcm", tmp_path / "back.png"
    code, out, err = run(capsys, "compress", photo, packed, "-T", 4, "--bpp", 0.8)
    assert (code, err) == (0, "")
    assert "bpp" in out and "PSNR" in out and "backend" in out
    assert packed.stat().st_size * 8 <= 0.8 * 22 * 33
    code, out, err = run(capsys, "info", packed)
    assert code == 0 and "33x22" in out and "photo" in out and "hadamard" in out
    code, out, err = run(capsys, "decompress", packed, back, "--quiet")
    assert (code, out, err) == (0, "", "")
    assert Image.open(back).size == (33, 22)
    assert run(capsys, "decompress", packed, tmp_path / "early.webp", "--first", "50%", "-q")[0] == 0
    early, whole = tmp_path / "preview.png", tmp_path / "whole.png"
    status, said, _ = run(capsys, "decompress", packed, whole, "--preview", early)
    assert status == 0 and said.index("a preview") < said.index(str(whole))
    with Image.open(early) as first, Image.open(whole) as last:
        assert first.size == last.size and first.tobytes() != last.tobytes()
    status, _, complaint = run(capsys, "decompress", packed, whole, "--preview", whole)
    assert status != 0 and "different names" in complaint
    status, _, complaint = run(capsys, "decompress", packed, packed, tmp_path / "many", "--preview", early)
    assert status != 0 and "of many files there is none" in complaint
    assert {p.name for p in tmp_path.iterdir()} == {
        *("photo.png", "photo.ddcm", "back.png", "early.webp", "preview.png", "whole.png")
    }


@pytest.mark.parametrize("name", ["ddcm", "pursuit"])
def test_presets_with_their_own_settings(photo, tmp_path, capsys, name):
    args = ["--preset", name, "-T", 3, "-K", 50, "--seed", 7, "--kind", "gaussian", "-q"]
    assert run(capsys, "compress", photo, tmp_path / "a.ddcm", *args)[0] == 0
    out = run(capsys, "info", tmp_path / "a.ddcm")[1]
    assert "K          50" in out and "seed       7" in out and "gaussian" in out


def test_a_picture_for_jpeg_is_called_one(tmp_path, capsys):
    halves = Image.new("L", (128, 128))
    halves.paste(255, (0, 0, 128, 61))
    halves.convert("RGB").save(tmp_path / "halves.png")
    command = ["compress", tmp_path / "halves.png", tmp_path / "x.ddcm", "--model", "gaussian-field", "-T", 5]
    code, out, err = run(capsys, *command, "--bpp", 1, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["jpeg_psnr"] > facts["psnr"] + 0.5
    assert "warning:" in err and "is no picture for the model 'gaussian-field': a JPEG of" in err
    assert run(capsys, *command, "--bpp", 1, "-q") == (0, "", "")
    code, out, err = run(capsys, *command, "--bpp", 0.1, "--json")  # no JPEG is so small
    assert code == 0 and json.loads(out)["jpeg_psnr"] is None and err == ""


def test_generate(tmp_path, capsys):
    folder = tmp_path / "new"
    args = ["--output-dir", folder, "-n", 2, "--size", "24x16", "--preset", "ddcm", "-T", 3, "-K", 64, "-q"]
    assert run(capsys, "generate", *args)[0] == 0
    assert sorted(p.name for p in folder.iterdir()) == ["0000.ddcm", "0000.png", "0001.ddcm", "0001.png"]
    assert run(capsys, "decompress", folder / "0001.ddcm", tmp_path / "again.png", "-q")[0] == 0
    assert Image.open(tmp_path / "again.png").tobytes() == Image.open(folder / "0001.png").tobytes()


def test_calibrate(photo, tmp_path, capsys):
    model, images = tmp_path / "model", tmp_path / "images"
    shutil.copytree(WEIGHTS / "photo", model)
    images.mkdir()
    shutil.copy(photo, images)
    assert run(capsys, "calibrate", "--model", model, "--images", images, "--side", 16)[0] == 0
    settings = json.loads((model / "ddcm.json").read_text())
    curve = settings["information"]
    assert settings["space_to_depth"] == 2 and len(curve["t"]) == len(curve["mse"]) > 10
    code, _, err = run(capsys, "calibrate", "--model", tmp_path / "none", "--images", images)
    assert code == 2 and err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["compress", "none.png", "a.ddcm"], "No such file"),
        (["compress", "text.png", "a.ddcm"], "cannot read"),
        (["compress", "photo.png", "no/folder/a.ddcm"], "no such folder"),
        (["compress", "photo.png", "a.ddcm", "-K", "0"], "K is 0"),
        (["compress", "photo.png", "a.ddcm", "--preset", "best"], "unknown preset"),
        (["compress", "photo.png", "a.ddcm", "--model", "nothing/here"], "nothing/here"),
        (["compress", "photo.png", "a.ddcm", "--device", "cuda"], "--device cpu"),
        (["compress", "photo.png", "a.ddcm", "--device", "toaster"], "toaster"),
        (["compress", "photo.png", "a.ddcm", "--dtype", "int8"], "dtype"),
        (["compress", "photo.png", "a.ddcm", "--bpp", "2", "--backend", "abacus"], "abacus"),
        (["compress", "photo.png", "a.ddcm", "--bpp", "-1"], "bpp"),
        (["compress", "photo.png", "a.ddcm", "--bpp", "2", "--mask", "small.png"], "mask"),
        (["compress", "photo.png", "a.ddcm"], "header alone"),
        (["decompress", "photo.png", "b.png"], "not a .ddcm file"),
        (["decompress", "text.png", "b.unknown"], "image format"),
        (["decompress", "none.ddcm", "b.png"], "cannot read"),
        (["info", "none.ddcm"], "cannot read"),
        (["generate", "--output-dir", "out", "-n", "0"], "-n is 0"),
        (["generate", "--output-dir", "out", "--size", "8x8"], "16 to 4096"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(photo, tmp_path, capsys, monkeypatch, args, says):
    if torch.cuda.is_available() and "cuda" in args:
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("not an image")
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    before = {p.name for p in tmp_path.iterdir()} | {"out"}
    code, out, err = run(capsys, *args)
    assert code == 2 and out == ""
    assert err.startswith("ddcm: ") and err.count("\n") == 1 and says in err
    assert {p.name for p in tmp_path.iterdir()} <= before


def test_an_interrupted_decode_leaves_no_file(photo, tmp_path, capsys, monkeypatch):
    from ddcm_fast.codec.codec import Codec

    assert run(capsys, "compress", photo, tmp_path / "a.ddcm", "--preset", "ddcm", "-T", 2, "-q")[0] == 0

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Codec, "decode", stop)
    code, _, err = run(capsys, "decompress", tmp_path / "a.ddcm", tmp_path / "b.png")
    assert code == 130 and err == "ddcm: interrupted\n" and not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("command", ["", "compress", "decompress", "info", "generate", "calibrate"])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert len(text) > 200


def test_a_label_travels_in_the_file_or_must_be_given_again(tmp_path, capsys):
    Image.linear_gradient("L").resize((8, 8)).save(tmp_path / "digit.png")
    args = ["--model", "digits", "--preset", "ddcm", "-T", 5, "-K", 16, "-q"]
    packed, secret = tmp_path / "a.ddcm", tmp_path / "b.ddcm"
    assert run(capsys, "compress", tmp_path / "digit.png", packed, "--label", 7, *args)[0] == 0
    assert "label 7" in run(capsys, "info", packed)[1]
    command = ["compress", tmp_path / "digit.png", secret, "--label", 7, "--withhold-condition", *args]
    assert run(capsys, *command)[0] == 0
    assert "does not travel" in run(capsys, "info", secret)[1]

    def decompress(file, name, *options):
        code, _, err = run(capsys, "decompress", file, tmp_path / name, "-q", *options)
        return code, err, Image.open(tmp_path / name).tobytes() if (tmp_path / name).exists() else None

    shown = decompress(packed, "a.png")
    assert shown[:2] == (0, "") and shown == decompress(secret, "b.png", "--label", 7)
    for name, options in (("c.png", []), ("d.png", ["--label", 3])):
        code, err, picture = decompress(secret, name, *options)
        assert code == 2 and picture is None and "condition" in err and err.count("\n") == 1


def test_a_refused_generate_leaves_nothing_behind(tmp_path, capsys):
    code, _, err = run(capsys, "generate", "--model", "digits", "--label", 77, "--output-dir", tmp_path / "new", "-q")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    code, _, err = run(capsys, "generate", "--model", "digits", "--output-dir", tmp_path / "file", "-q")
    assert code == 2 and "name a folder" in err
