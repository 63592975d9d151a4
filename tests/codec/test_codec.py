"""The codec end to end: decoder == encoder, sizes, bad input, rate control, prefixes."""

import math
import random
import subprocess
import sys

import pytest
import torch
from PIL import Image

from ddcm_fast import Codec, CodecConfig, load_model
from ddcm_fast.codec import container
from ddcm_fast.codec.config import PRESETS, preset
from ddcm_fast.codec.images import psnr, to_pil, to_tensor
from ddcm_fast.errors import ConfigError, FormatError, InputError, ModelError
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.tasks import edit

SMALL = {
    "ddcm": preset("ddcm", T=6, K=1000),
    "ddcm gaussian": preset("ddcm", T=5, K=64, kind="gaussian"),
    "ddcm hadamard trailing": preset("ddcm", T=5, K=300, kind="hadamard", schedule="trailing"),
    "t_range": preset("ddcm", T=6, K=32, t_range=(800, 200)),
    "pursuit": preset("pursuit", T=5, K=100, M=3, C=2),
    "pursuit official": preset("pursuit", T=4, K=64, M=2, C=2, kind="gaussian", official_grid=True),
    "product": preset("product", T=4, K=256, atoms=37, stop=200),
    "product sign": preset("product", T=3, K=100, M=5, stop=150, kind="sign", tail=2),
    "trellis": preset("trellis", T=4, K=256, C=3, atoms=61, stop=200),
    "turbo": preset("turbo", T=4, K=500, atoms=30, stop=200),
    "turbo-hadamard": preset("turbo-hadamard", T=4, K=256, atoms=31, stop=200),
    "diffc": preset("diffc", T=4, K=1024, atoms=9, stop=300),
}


@pytest.fixture(scope="module")
def photo():
    return load_model("photo", device="cpu")


@pytest.fixture(scope="module")
def field():
    return load_model("gaussian-field", device="cpu")


def picture(height, width, seed=0):
    """A smooth random image (3, H, W) in [-1, 1]."""
    coarse = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].mul(0.5).clamp(-1, 1)


@pytest.mark.parametrize("name", SMALL)
def test_decoder_gives_the_encoders_reconstruction(photo, name):
    codec = Codec(photo, SMALL[name])
    coded = codec.encode(picture(21, 35))[0]
    assert coded.reconstruction.shape == (3, 21, 35)
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)
    assert coded.bpp == 8 * len(coded.data) / (21 * 35)
    header, _ = container.read(coded.data)
    assert header.config == SMALL[name] and header.model == "photo"


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (64, 23)])
def test_sizes(photo, size):
    codec = Codec(photo, SMALL["ddcm"])
    coded = codec.encode(picture(*size))[0]
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)
    assert codec.decompress(coded.data).size == (size[1], size[0])


def test_a_new_process_decodes_the_same_pixels(photo, tmp_path):
    coded = Codec(photo, SMALL["product"]).encode(picture(24, 24))[0]
    (tmp_path / "a.ddcm").write_bytes(coded.data)
    code = (
        "import sys, torch; from ddcm_fast import Codec, load_model\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "image = Codec(load_model('photo', device='cpu')).decode(open(sys.argv[1], 'rb').read())\n"
        "torch.save(image, sys.argv[2])"
    )
    threads = str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.ddcm"), str(tmp_path / "a.pt"), threads], check=True)
    assert torch.equal(torch.load(tmp_path / "a.pt"), coded.reconstruction)


def test_pil_and_tensor_single_and_batch(field):
    codec = Codec(field, SMALL["ddcm"])
    tensor = picture(16, 24)
    image = to_pil(tensor)
    assert isinstance(codec.compress(image), bytes)
    assert codec.compress(image) == codec.compress(to_tensor(image)[0])
    two = torch.stack([tensor, picture(16, 24, seed=1)])
    assert codec.compress(two) == [codec.compress(two[0]), codec.compress(two[1])]
    mixed = codec.encode([tensor, image, picture(17, 16)])
    assert [tuple(c.reconstruction.shape[1:]) for c in mixed] == [(16, 24), (16, 24), (17, 16)]
    assert mixed[0].data == codec.compress(tensor)
    batched = Codec(field, SMALL["ddcm"], batch_size=2).encode(two)
    for one in batched:
        assert len(one.data) == len(codec.compress(tensor))


def test_payload_is_the_information(field):
    for size, steps in ((1000, 9), (4096, 50), (3, 100)):
        coded = Codec(field, CodecConfig(K=size, T=steps)).encode(picture(16, 16))[0]
        _, payload = container.read(coded.data)
        assert 0 <= 8 * len(payload) - (steps - 1) * math.log2(size) < 8 + 1e-9


def test_seed_and_quality(field):
    images = field.draw(2, 32, 32, seed=3).clamp(-1, 1)
    low, high = (Codec(field, preset("product", K=256, atoms=n, T=10, stop=s)) for n, s in ((40, 200), (400, 60)))
    for image in images:
        a, b = low.encode(image)[0], high.encode(image)[0]
        assert psnr(image, b.reconstruction) > psnr(image, a.reconstruction) + 2
    other = Codec(field, preset("product", K=256, atoms=40, T=10, stop=200, seed=9))
    assert other.compress(images[0]) != low.compress(images[0])


def test_generated_images_decode_to_themselves(photo):
    codec = Codec(photo, SMALL["pursuit"])
    first, second = codec.generate(2, 24, 16, seed=5)
    assert not torch.equal(first.reconstruction, second.reconstruction)
    assert torch.equal(codec.decode(second.data), second.reconstruction)
    assert codec.generate(1, 24, 16, seed=5)[0].data == first.data


@pytest.mark.parametrize("name", ["product", "trellis", "turbo", "turbo-hadamard", "diffc"])
def test_tails_with_and_without_noise(field, name):
    image = field.draw(1, 32, 32, seed=1)[0].clamp(-1, 1)
    images = []
    for ancestral in (False, True):
        config = preset(name, K=1024, T=4, atoms=40, tail=3, ancestral_tail=ancestral)
        coded = Codec(field, config).encode(image)[0]
        assert torch.equal(Codec(field).decode(coded.data), coded.reconstruction)
        noises = [step.noise > 0 for step in config.steps(field) if not step.coded]
        assert noises == [ancestral, ancestral, False]
        images.append(coded.reconstruction)
    assert not torch.equal(*images)


# ---- rate control --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["product", "trellis", "turbo", "turbo-hadamard", "ddcm", "pursuit"])
def test_bitrate_is_met_from_below(field, name):
    image = field.draw(1, 64, 64, seed=1)[0].clamp(-1, 1)
    codec = Codec.from_preset(field, name, K=1024)
    target = 0.35
    coded = codec.encode(image, bpp=target)[0]
    atom = 11 if name == "product" else 32 if name == "pursuit" else 14  # bits of the smallest change, at most
    assert target - (atom + 16) / 64**2 <= coded.bpp <= target
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)


def test_rcc_comes_near_the_bitrate_and_stays_below(field):
    image = field.draw(1, 64, 64, seed=1)[0].clamp(-1, 1)
    coded = Codec.from_preset(field, "diffc", K=1024).encode(image, bpp=0.6)[0]
    assert 0.98 * 0.6 <= coded.bpp <= 0.6


@pytest.mark.parametrize("target", [17.0, 22.0])
def test_quality_is_met(field, target):
    image = field.draw(1, 64, 64, seed=2)[0].clamp(-1, 1)
    codec = Codec.from_preset(field, "product", K=4096)
    coded = codec.encode(image, psnr=target)[0]
    assert abs(psnr(image, coded.reconstruction) - target) <= 0.2


def test_impossible_rates(field):
    codec = Codec.from_preset(field, "product")
    image = picture(16, 16)
    with pytest.raises(ConfigError, match="header alone"):
        codec.encode(image, bpp=0.01)
    with pytest.raises(ConfigError, match="not enough"):
        codec.encode(image, bpp=1.25)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="positive"):
            codec.encode(image, bpp=wrong)
    with pytest.raises(ConfigError, match="not both"):
        codec.encode(image, bpp=1.0, psnr=20.0)
    with pytest.raises(ConfigError, match="out of reach"):
        codec.encode(image, psnr=90.0)
    with pytest.raises(ConfigError, match="larger K"):
        Codec(field, CodecConfig(K=2)).encode(picture(64, 64), bpp=4.0)


def test_mask_moves_quality_to_where_it_is_bright(field):
    image = field.draw(1, 64, 64, seed=4)[0].clamp(-1, 1)
    mask = torch.full((64, 64), 0.1)
    mask[:, :32] = 1.0
    codec = Codec.from_preset(field, "turbo", K=4096)
    plain, weighted = (codec.encode(image, bpp=1.0, mask=m)[0].reconstruction for m in (None, mask))
    assert psnr(image[..., :32], weighted[..., :32]) > psnr(image[..., :32], plain[..., :32]) + 0.3
    with pytest.raises(InputError, match="mask"):
        codec.encode(image, bpp=1.0, mask=mask[:5])


@pytest.mark.parametrize("name", ["product", "trellis", "turbo", "ddcm", "diffc"])
def test_a_prefix_decodes_to_a_coarser_picture(field, name):
    image = field.draw(1, 64, 64, seed=6)[0].clamp(-1, 1)
    codec = Codec.from_preset(field, name, K=1024)
    coded = codec.encode(image, bpp=1.0 if name != "ddcm" else 0.5)[0]
    qualities = [psnr(image, codec.decode(coded.data, first=share)) for share in (0.1, 0.4, 1.0)]
    assert qualities[0] < qualities[2] and qualities[1] < qualities[2]
    assert torch.equal(codec.decode(coded.data, first=1.0), coded.reconstruction)
    cut = coded.data[: int(0.4 * len(coded.data))]
    with pytest.raises(FormatError):
        codec.decode(cut)
    assert psnr(image, codec.decode(cut, ignore_checksum=True)) == pytest.approx(qualities[1], abs=1.0)
    with pytest.raises(ConfigError, match="first"):
        codec.decode(coded.data, first=0.0)


@pytest.mark.parametrize("name", ["product", "trellis", "turbo", "ddcm", "diffc"])
def test_a_preview_is_near_the_picture_and_sooner_there(field, name, monkeypatch):
    image = field.draw(1, 60, 91, seed=6)[0].clamp(-1, 1)
    codec = Codec.from_preset(field, name, K=1024)
    data = codec.encode(image, bpp=1.0 if name != "ddcm" else 0.5)[0].data
    whole = codec.decompress(data)
    assert codec.preview(data, 1).tobytes() == whole.tobytes()
    calls = []
    predict = field.predict
    monkeypatch.setattr(field, "predict", lambda *args: calls.append(1) or predict(*args))
    counts = []
    for scale in (1, 2, 8):
        calls.clear()
        small = codec.preview(data, scale)
        counts.append(len(calls))
        assert small.size == (-(-91 // scale), -(-60 // scale))
        assert psnr(to_tensor(small), to_tensor(whole.reduce(scale))) > 18
    assert counts[0] == len(codec.config.steps(field)) or name == "ddcm"
    assert counts[0] > counts[1] > counts[2]


def test_a_preview_is_that_of_an_edited_file_and_of_its_condition():
    codec = Codec(load_model("digits"), preset("ddcm", T=10, K=16))
    digit = Image.linear_gradient("L").resize((8, 8))
    data = codec.compress(digit, Condition(label=7), embed_condition=False)
    with pytest.raises(ConfigError, match="condition"):
        codec.preview(data, 2)
    assert codec.preview(data, 2, Condition(label=7)).size == (4, 4)
    (edited,) = edit(codec, codec.compress(digit, Condition(label=7)), [Condition(label=1, guidance_scale=3.0)], [0])
    assert codec.preview(edited.data, 2).tobytes() != codec.preview(data, 2, Condition(label=7)).tobytes()


def test_a_preview_of_averaged_pictures_costs_little(photo):
    codec = Codec(photo, preset("trellis", T=8, atoms=400))
    data = codec.encode(picture(128, 128))[0].data
    costs = []
    for scale in (1, 4, 16):
        spent = []
        codec.callback_on_step_end = lambda own, index, t, tensors, spent=spent: spent.append(
            own.model.cost(t, tensors["latents"].shape)
        )
        small = codec.preview(data, scale)
        costs.append(sum(spent))
        assert psnr(to_tensor(small), to_tensor(codec.decompress(data).reduce(scale))) > 20
        codec.callback_on_step_end = None
    assert costs[1] < 0.4 * costs[0] and costs[2] < 0.1 * costs[0]


@pytest.mark.parametrize("scale", [0, 65, 2.5, "8"])
def test_scales_of_previews(field, scale):
    with pytest.raises(ConfigError, match="scale"):
        Codec(field, SMALL["ddcm"]).preview(b"", scale)


# ---- bad input -----------------------------------------------------------------------------------


def test_bad_images(field):
    codec = Codec(field, SMALL["ddcm"])
    nan = picture(16, 16)
    nan[0, 3, 3] = math.nan
    for wrong, match in (
        (nan, "NaN"),
        (picture(15, 16), "16 to 4096"),
        (torch.zeros(3, 16, 5000), "16 to 4096"),
        (torch.zeros(1, 16, 16), "must be"),
        (torch.zeros(16, 16), "must be"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), "floating"),
        (torch.full((3, 16, 16), 2.0), r"\[-1, 1\]"),
        ("photo.jpg", "PIL image or a tensor"),
    ):
        with pytest.raises(InputError, match=match):
            codec.encode([wrong])


def test_transparent_and_grey_images(field):
    codec = Codec(field, SMALL["ddcm"])
    for mode in ("L", "LA", "RGBA", "P", "CMYK", "1"):
        assert codec.encode(Image.new(mode, (16, 18)))[0].reconstruction.shape == (3, 18, 16)


def test_a_network_that_answers_nan(photo):
    class Broken(type(photo)):
        def predict(self, x, t, condition=None):
            return x * math.nan, x

    broken = object.__new__(Broken)
    broken.__dict__ = photo.__dict__
    with pytest.raises(InputError, match="NaN"):
        Codec(broken, SMALL["ddcm"]).encode(picture(16, 16))


def test_wrong_model_and_wrong_dtype(photo, field):
    data = Codec(photo, SMALL["ddcm"]).compress(picture(16, 16))
    with pytest.raises(ModelError, match="photo"):
        Codec(field).decode(data)
    other = "float32" if photo.dtype != torch.float32 else "bfloat16"
    with pytest.warns(UserWarning, match="load the model with dtype="):
        Codec(load_model("photo", device="cpu", dtype=other)).decode(data)


def test_flipped_payload_bits_are_reported_or_decoded(field):
    codec = Codec(field, SMALL["product"])
    data = bytearray(codec.compress(picture(16, 16)))
    data[-3] ^= 16
    with pytest.raises(FormatError, match="checksum"):
        codec.decode(bytes(data))
    assert codec.decode(bytes(data), ignore_checksum=True).shape == (3, 16, 16)


def test_damaged_files_decode_or_raise_our_errors(field):
    """Checksum ignored, as the worst case; large images are only parsed, since decoding them is what they ask for."""
    rng = random.Random(1)
    originals = [Codec(field, config).compress(picture(16, 16)) for config in SMALL.values()]
    codec = Codec(field)
    decoded = 0
    for _ in range(1500):
        broken = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(8, len(broken))] = rng.randrange(256)
        if rng.random() < 0.2:
            del broken[rng.randrange(8, len(broken)) :]
        try:
            header, _ = container.read(bytes(broken), ignore_checksum=True)
            if header.width * header.height > 4096 or header.config.T + header.config.tail > 40 or header.config.M > 8:
                continue
            image = codec.decode(bytes(broken), ignore_checksum=True)
        except (FormatError, ModelError, ConfigError):
            continue
        decoded += 1
        assert torch.isfinite(image).all()
    assert decoded > 100


def test_presets_are_described():
    for name, (config, text) in PRESETS.items():
        assert isinstance(config, CodecConfig) and len(text) > 20, name


def test_an_early_picture_comes_after_a_third_and_changes_nothing(field):
    codec = Codec.from_preset(field, "product", K=256, T=8)
    coded = codec.encode(field.draw(1, 32, 48, seed=7)[0].clamp(-1, 1), bpp=1.0)[0]
    seen, order = [], []

    def note(codec, index, t, state):
        order.append((index, len(seen)))

    codec.callback_on_step_end = note
    decoded = codec.decode(coded.data, early=seen.append)
    assert torch.equal(decoded, coded.reconstruction) and len(seen) == 1
    assert seen[0].shape == decoded.shape and not torch.equal(seen[0], decoded)
    first_with = next(index for index, pictures in order if pictures)
    assert first_with - 1 == math.ceil(len(order) / 3) - 1  # equal steps: the one that ends at or beyond a third
    pictures = []
    codec.decompress(coded.data, early=pictures.append)
    assert [picture.size for picture in pictures] == [(decoded.shape[2], decoded.shape[1])]
