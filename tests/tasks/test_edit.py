"""Compressed editing: files that decode alone, editing again, one encoding for several targets."""

import pytest
import torch

from ddcm_fast import Codec, load_model
from ddcm_fast.codec import container
from ddcm_fast.errors import ConfigError, FormatError
from ddcm_fast.models import digits
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.tasks import edit

T = 60


@pytest.fixture(scope="module")
def codec():
    torch.set_num_threads(1)
    return Codec.from_preset(load_model("digits", device="cpu"), "ddcm", K=64, T=T)


@pytest.fixture(scope="module")
def seven(codec):
    source = Condition(label=7, guidance_scale=2.0)
    return codec.generate(1, 8, 8, seed=5, condition=source)[0]


def test_edited_file_decodes_alone(codec, seven):
    for edited in edit(codec, seven.data, [Condition(label=1), Condition(label=9)], [10, 30]):
        assert torch.equal(Codec(codec.model).decode(edited.data), edited.reconstruction)


def test_t_edit_at_the_end_changes_nothing_and_at_the_start_everything(codec, seven):
    target = Condition(label=1, guidance_scale=2.0)
    start, end = edit(codec, seven.data, [target], [0, T])
    assert torch.equal(end.reconstruction, seven.reconstruction)
    assert digits.load_classifier()(start.reconstruction[None]).argmax() == 1


def test_editing_again_forgets_the_first_edit(codec, seven):
    target = Condition(label=1, guidance_scale=2.0)
    once = edit(codec, seven.data, [Condition(label=3)], [20])[0]
    again = edit(codec, once.data, [target], [15])[0]
    direct = edit(codec, seven.data, [target], [15])[0]
    assert again.data == direct.data
    assert container.read(again.data)[0].condition == Condition(label=7, guidance_scale=2.0)


def test_several_targets_share_one_payload(codec, seven):
    results = edit(codec, seven.data, [Condition(label=c) for c in (0, 1, 2)], [5, 25])
    payloads = {container.read(r.data)[1] for r in results}
    assert len(results) == 6 and payloads == {container.read(seven.data)[1]}


def test_edit_towards_no_condition_and_from_a_hidden_source(codec):
    source = Condition(label=7)
    hidden = codec.generate(1, 8, 8, seed=5, condition=source, embed_condition=False)[0]
    plain = edit(codec, hidden.data, [Condition()], [10], source=source)[0]
    full = codec.model.complete_condition(source)
    assert torch.equal(codec.decode(plain.data, condition=full), plain.reconstruction)
    with pytest.raises(ConfigError, match="does not travel"):
        edit(codec, hidden.data, [Condition(label=1)], [10])


@pytest.mark.parametrize(
    ("targets", "starts", "message"),
    [
        ([Condition(label=10)], [3], "labels 0 to 9"),
        ([Condition(prompt="one")], [3], "no prompt"),
        ([Condition(label=1)], [T + 1], "give 0 to 59"),
        ([Condition(label=1)], [-1], "give 0 to 59"),
        ([], [3], "at least one target"),
    ],
)
def test_bad_input(codec, seven, targets, starts, message):
    with pytest.raises(ConfigError, match=message):
        edit(codec, seven.data, targets, starts)
    with pytest.raises(FormatError):
        edit(codec, b"nothing", [Condition(label=1)], [3])
