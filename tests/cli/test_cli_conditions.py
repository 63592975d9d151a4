"""Labels, captions and seeds of many images; ddcm generate with them, in batches and under a classifier's guidance."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddcm_fast.cli import main
from ddcm_fast.cli.conditions import read_captions, read_labels
from ddcm_fast.codec import container
from ddcm_fast.errors import InputError
from ddcm_fast.sampling.draws import drawn, own_seeds

FAST = ["--device", "cpu", "--dtype", "float32", "-q"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_labels_and_captions(tmp_path):
    assert read_labels(write(tmp_path / "l", "3\n\n 14 \r\n1")) == [3, 14, 1]
    assert read_captions(write(tmp_path / "c", "a cat\n  \nein Fuchs für zwei\n")) == ["a cat", "ein Fuchs für zwei"]
    coco = {"images": [], "annotations": [{"image_id": i, "caption": f"{i}\n {n}"} for n in range(2) for i in (8, 3)]}
    assert read_captions(write(tmp_path / "c.json", json.dumps(coco))) == ["8 0", "3 0"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("l", "1\ncat\n", "has the label 'cat'"),
        ("l", "\n", "no labels"),
        ("l", b"\xff\xfe", "UTF-8"),
        ("c.json", "[]", "MS-COCO"),
        ("c.json", "{", "MS-COCO"),
        ("c.json", '{"annotations": [{"image_id": 1}]}', "'caption'"),
        ("c.json", '{"annotations": []}', "no captions"),
        ("c.json", "[" * 100000, "MS-COCO"),
    ],
)
def test_files_that_are_none(tmp_path, name, data, message):
    path = write(tmp_path / name, data)
    with pytest.raises(InputError, match=message) as error:
        (read_labels if name == "l" else read_captions)(path)
    assert "\n" not in str(error.value)


def test_what_is_drawn_first_does_not_depend_on_the_count():
    assert drawn(range(1000), 20, 3) == drawn(range(1000), 50, 3)[:20]
    assert drawn(range(1000), 20, 3) != drawn(range(1000), 20, 4)
    many = drawn([2, 5], 400, 0)
    assert 150 < many.count(2) < 250 and many.count(2) + many.count(5) == 400
    assert own_seeds(3, 20) == own_seeds(3, 50)[:20] and len(set(own_seeds(0, 100))) == 100


GENERATE = ["generate", "--model", "digits", "-K", "64", "-T", "5", *FAST]


def test_labels_of_a_file_in_batches(tmp_path):
    """The number of images is the file's; an image has the same letters in whatever batch."""
    labels = str(write(tmp_path / "labels.txt", "3\n1\n4\n"))
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert main([*GENERATE, "--labels", labels, "--batch-size", "2", "--output-dir", str(together)]) == 0
    assert main([*GENERATE, "--labels", labels, "-n", "2", "--output-dir", str(alone)]) == 0
    files = [(together / f"{i:04d}.ddcm").read_bytes() for i in range(3)]
    assert [container.read(data)[0].condition.label for data in files] == [3, 1, 4]
    assert (alone / "0001.ddcm").read_bytes() == files[1]
    assert not (alone / "0002.ddcm").exists()
    images = [np.asarray(Image.open(folder / "0001.png")).astype(int) for folder in (together, alone)]
    assert abs(images[0] - images[1]).max() <= 1


def test_compressed_guidance_in_batches(tmp_path):
    labels = str(write(tmp_path / "labels.txt", "3\n1\n4\n"))
    command = [*GENERATE, "--labels", labels, "--ccfg", "3", "--batch-size", "2", "--output-dir", str(tmp_path / "o")]
    assert main(command) == 0
    assert [container.read(p.read_bytes())[0].condition for p in sorted((tmp_path / "o").glob("*.ddcm"))] == [None] * 3


def classifier(path):
    """A program whose classes are as bright as their label: log p falls with the distance from it."""

    class Bright(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            levels = torch.linspace(-1.0, 1.0, 5, device=x.device)
            return -500 * (x.mean((1, 2, 3))[:, None] - levels) ** 2 + 0 * t[:, None]

    torch.jit.script(Bright()).save(str(path))
    return str(path)


def test_a_classifier_guides_a_model_without_classes(tmp_path, capsys):
    program, labels = classifier(tmp_path / "bright.pt"), str(write(tmp_path / "labels.txt", "0\n4\n"))
    command = ["generate", "--model", "photo", "--size", "16x16", "-K", "64", "-T", "30", "--labels", labels, *FAST]
    command += ["--classifier", program, "--classifier-scale", "4", "--output-dir", str(tmp_path / "o")]
    assert main(command) == 2
    assert "--trust" in capsys.readouterr().err
    assert main([*command, "--trust", "--batch-size", "2"]) == 0
    dark, bright = (np.asarray(Image.open(tmp_path / "o" / f"000{i}.png")).mean() for i in range(2))
    assert dark + 60 < bright
    files = [str(tmp_path / "o" / f"000{i}.ddcm") for i in range(2)]
    out = str(tmp_path / "again.png")
    decode = ["decompress", files[1], out, *FAST]
    assert main(decode) == 2
    assert main([*decode, "--trust", "--classifier", program, "--classifier-scale", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    guided = ["--trust", "--classifier", program, "--classifier-scale", "4"]
    assert main([*decode, *guided]) == 0
    images = [np.asarray(Image.open(path)).astype(int) for path in (out, tmp_path / "o" / "0001.png")]
    assert abs(images[0] - images[1]).max() <= 1
    assert main(["decompress", *files, str(tmp_path / "many") + "/", *guided, *FAST]) == 0
    assert Image.open(tmp_path / "many" / "0001.png").tobytes() == Image.open(out).tobytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "L", "-n", "4"], "has 3 lines for 4 images"),
        (["--labels", "L", "--label", "2"], "leave it out"),
        (["--labels", "M"], "labels 0 to 9, not 77"),
        (["--labels", "none"], "cannot read none"),
        (["--labels", "L", "--batch-size", "0"], "batch_size is 0"),
        (["--captions", "L"], "takes a class label, no prompt"),
        (["--labels", "L", "--ccfg", "2", "--classifier", "P", "--trust"], "guides without --classifier"),
        (["--classifier", "P", "--trust"], "the label is None; classifier guidance needs one"),
        (["--label", "3", "--classifier", "none.pt", "--trust"], "no such file of a classifier"),
        (["--label", "3", "--classifier", "L", "--trust"], "save the classifier with"),
    ],
)
def test_errors_before_any_work(tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "L", "3\n1\n4\n")
    write(tmp_path / "M", "3\n77\n")
    classifier(tmp_path / "P")
    assert main([*GENERATE, *more, "--output-dir", "o"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "o").exists()
