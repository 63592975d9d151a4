"""What Codec takes: prompts as texts, a condition for each image, generators as seeds, files in any form."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image
from test_pipelines import CONFIG, image

from ddcm_fast import Codec, Condition, load_model
from ddcm_fast.codec import container
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.sampling.choosers import Draw, seeded
from ddcm_fast.tasks import edit


@pytest.fixture(scope="module")
def text() -> Codec:
    return Codec(tiny_pipelines.build("sd"), CONFIG, batch_size=2)


@pytest.fixture(scope="module")
def plain() -> Codec:
    return Codec(load_model("gaussian-field"), CONFIG)


def test_a_text_is_the_prompt(text: Codec) -> None:
    data = text.compress(image(), "a red fox")
    assert data == text.compress(image(), Condition("a red fox"))
    assert torch.equal(text.decode(data), text.decode(data, condition="a red fox"))
    with pytest.raises(ConfigError, match="a red fox"):
        text.decode(data, condition="a cat")
    assert edit(text, data, ["a cat"], [1])[0].data == edit(text, data, [Condition("a cat")], [1])[0].data
    with pytest.raises(ConfigError, match="not float"):
        text.compress(image(), 7.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="UTF-8"):
        Condition("\ud800")


def test_a_condition_for_each_image(text: Codec) -> None:
    """Batches mix prompts, not guidance scales; each file has its own image's."""
    conditions = ["a red fox", Condition("a cat"), None, Condition("a photo", guidance_scale=2.0)]
    coded = text.encode([image()] * 4, conditions)
    alone = [Codec(text.model, CONFIG).encode(image(), each)[0] for each in conditions]
    for own, other in zip(coded, alone, strict=True):
        assert container.read(own.data)[0].condition == container.read(other.data)[0].condition
        torch.testing.assert_close(own.reconstruction, text.decode(own.data), atol=1e-4, rtol=0)
    drawn = text.generate(3, 32, 32, condition=conditions[:3])
    assert [container.read(one.data)[0].condition for one in drawn] == [
        container.read(one.data)[0].condition for one in alone[:3]
    ]
    with pytest.raises(ConfigError, match="2 conditions for 3 images"):
        text.encode([image()] * 3, ["a cat", "a fox"])


def test_generators_as_seeds(plain: Codec) -> None:
    def drawn(seed: Any) -> bytes:
        return plain.generate(1, 16, 16, seed)[0].data

    generator = torch.Generator().manual_seed(3)
    assert drawn(generator) != drawn(generator)  # it goes on
    assert drawn(torch.Generator().manual_seed(3)) == drawn(torch.Generator().manual_seed(3))
    assert drawn(np.int64(7)) == drawn(7) and seeded(2**64 - 1).initial_seed() == 2**64 - 1
    for wrong, message in ((2**64, "from 0 to"), (-1, "from 0 to"), (1.5, "an integer"), ("x", "an integer")):
        with pytest.raises(ConfigError, match=message):
            Draw(wrong)  # type: ignore[arg-type]


def test_files_in_any_form(plain: Codec, tmp_path: Path) -> None:
    data = plain.compress(image(16, 16) / 2)
    assert isinstance(data, bytes)
    path = tmp_path / "a.ddcm"
    path.write_bytes(data)
    expected = plain.decode(data)
    forms = [bytearray(data), memoryview(data), io.BytesIO(data), np.frombuffer(data, np.uint8), path]
    for form in forms:
        assert torch.equal(plain.decode(form), expected)
    with path.open("rb") as stream:
        assert plain.decompress(stream).size == (16, 16)
    for wrong in (str(path), 5, None):
        with pytest.raises(InputError, match=r"pathlib\.Path"):
            plain.decode(wrong)
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        plain.decode(tmp_path / "none.ddcm")


def test_paths_of_images(plain: Codec, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    picture.save(path)
    data = plain.compress(path)
    assert isinstance(data, bytes) and data == plain.compress(picture)
    assert plain.compress([path, picture]) == [data, data]
