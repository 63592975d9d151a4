"""BPG and VTM as codecs: what their programs are given and what comes back, with stand-ins that this test writes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcm_fast.errors import ConfigError, InputError, MissingExtraError
from ddcm_fast.evaluation import codecs
from ddcm_fast.evaluation.codec import ImageCodec

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")

#: Both encoders: pictures in steps that grow with -q, zlib over them; what they were given goes to calls.jsonl.
_COMMON = """
import io, json, sys, zlib
from pathlib import Path
given = sys.argv[1:]
calls = Path(__file__).parent / "calls.jsonl"
calls.open("a").write(json.dumps([Path(__file__).stem, given]) + "\\n")
def after(option):
    return given[given.index(option) + 1]
def steps(data, q):
    step = 1 + int(q)
    return zlib.compress(bytes(min(255, value // step * step + step // 2) for value in data), 9)
"""
_PROGRAMS = {
    "bpgenc": """
from PIL import Image
image = Image.open(given[-1])
coded = steps(image.tobytes(), after("-q"))
Path(after("-o")).write_bytes(json.dumps(image.size).encode() + b"\\n" + coded)
""",
    "bpgdec": """
from PIL import Image
size, coded = Path(given[-1]).read_bytes().split(b"\\n", 1)
Image.frombytes("RGB", json.loads(size), zlib.decompress(coded)).save(after("-o"))
""",
    "EncoderAppStatic": """
data = Path(after("-i")).read_bytes()
assert len(data) == 3 * int(after("-wdt")) * int(after("-hgt")) and Path(after("-c")).is_file()
Path(after("-b")).write_bytes(steps(data, after("-q")))
""",
    "DecoderAppStatic": """
Path(after("-o")).write_bytes(zlib.decompress(Path(after("-b")).read_bytes()))
""",
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build folder whose bin/ has the stand-ins, and which alone is on the path."""
    folder = tmp_path / "build" / "bin"
    folder.mkdir(parents=True)
    for name, body in _PROGRAMS.items():
        (folder / f"{name}.py").write_text(_COMMON + body)
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / name}.py" "$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def calls(folder: Path, name: str) -> list[list[str]]:
    lines = [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    return [given for program, given in lines if program == name]


def smooth(width: int = 24, height: int = 17) -> Image.Image:
    small = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def worst(codec: ImageCodec, image: Image.Image, level: int) -> int:
    """The largest difference of a value, at one level."""
    back = codec._decode(codec._encode(image, level))
    assert back.size == image.size and back.mode == "RGB"
    return int(np.abs(np.asarray(back).astype(int) - np.asarray(image)).max())


def test_bpg_meets_a_rate(programs: Path) -> None:
    codec, image = codecs.make("bpg"), smooth()
    assert worst(codec, image, 0) == 0 < worst(codec, image, 40)
    (programs / "calls.jsonl").unlink()
    coded = codec.code(image, 8.0)
    tried = [int(given[given.index("-q") + 1]) for given in calls(programs, "bpgenc")]
    assert tried[0] == 51 and len(tried) == len(set(tried)) <= 7
    assert coded.fits and 8 * len(coded.data) <= 8.0 * 24 * 17 and coded.image.size == image.size
    chosen = next(q for q in range(52) if len(codec._encode(image, q)) <= 24 * 17)
    assert codec._encode(image, chosen) == coded.data
    assert all("-f 444 -c ycbcr -b 8" in " ".join(given) for given in calls(programs, "bpgenc"))
    assert not codec.code(image, 0.01).fits


def test_vtm_takes_and_gives_full_chroma(programs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--vtm-cfg"):
        codecs.make("vtm")
    own = tmp_path / "own.cfg"
    own.write_text("QP : 32\n")
    codec, image = codecs.make("vtm", vtm_cfg=own), smooth()
    assert worst(codec, image, 0) <= 2 < worst(codec, image, 40)  # YCbCr of 8 bits and back
    (given, _) = calls(programs, "EncoderAppStatic")
    assert {"--InputChromaFormat=444", "--InputBitDepth=8"} <= set(given) and given[given.index("-c") + 1] == str(own)
    coded = codec.code(image, 6.0)
    assert coded.fits and 8 * len(coded.data) <= 6.0 * 24 * 17
    beside = programs.parent / "cfg" / "encoder_intra_vtm.cfg"
    beside.parent.mkdir()
    beside.write_text("QP : 22\n")
    built = codecs.make("vtm")
    assert built.settings["cfg"] != codec.settings["cfg"] and built.settings["encoder"] == codec.settings["encoder"]


@pytest.mark.parametrize(
    ("name", "gone"), [("bpg", "bpgdec"), ("vtm", "EncoderAppStatic"), ("vtm", "DecoderAppStatic")]
)
def test_a_program_that_is_not_there(programs: Path, tmp_path: Path, name: str, gone: str) -> None:
    (tmp_path / "any.cfg").write_text("")
    (programs / gone).unlink()
    with pytest.raises(MissingExtraError, match=f"{name} needs the program .*on the path") as error:
        codecs.make(name, vtm_cfg=tmp_path / "any.cfg")
    assert gone in str(error.value) and "\n" not in str(error.value)


def test_a_program_that_fails_is_named(programs: Path, tmp_path: Path) -> None:
    (programs / "bpgenc").write_text("#!/bin/sh\necho trying >&2\necho no such chroma >&2\nexit 1\n")
    with pytest.raises(InputError, match=r"bpg: bpgenc failed: no such chroma$"):
        codecs.make("bpg").code(smooth(), 1.0)
    (programs / "DecoderAppStatic").write_text('#!/bin/sh\n/bin/echo none > "$4"\n')
    (tmp_path / "any.cfg").write_text("")
    with pytest.raises(InputError, match="the decoder wrote 5 bytes, not 1224"):
        codecs.make("vtm", vtm_cfg=tmp_path / "any.cfg").code(smooth(), 1.0)


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddcm_fast.cli import main

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    smooth().save("a.png")
    for name in ("bpg", "vtm"):
        assert main(["eval", "a.png", "--output", "out", "--codecs", f"trellis,{name}"]) == 2
        err = capsys.readouterr().err
        assert f"{name} needs the program" in err and err.count("\n") == 1 and not Path("out").exists()
