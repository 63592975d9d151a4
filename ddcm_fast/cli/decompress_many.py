"""`ddcm decompress` of many files into one folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ddcm_fast.cli import many
from ddcm_fast.cli.arguments import condition_of
from ddcm_fast.cli.loading import load_for, make_codec
from ddcm_fast.cli.pictures import image_bytes, image_kind
from ddcm_fast.codec import container
from ddcm_fast.errors import ConfigError
from ddcm_fast.files import MAX_FILE

if TYPE_CHECKING:
    from ddcm_fast.bulk.run import Work
    from ddcm_fast.codec.codec import Codec
    from ddcm_fast.codec.container import Header


def run(args: argparse.Namespace) -> None:
    """Decompress what the arguments name."""
    from ddcm_fast.bulk.sources import find

    many.check(args, {})
    if args.preview is not None:
        raise ConfigError(f"--preview is {args.preview}, and of many files there is none; leave it out")
    name = f"image.{args.format or 'png'}"
    kind = image_kind(name)
    items = find(args.inputs, lambda ending: ending.lower() == ".ddcm", ".ddcm files", MAX_FILE)
    if args.engine == "ray":
        from ddcm_fast.cli.on_ray import run as on_ray

        on_ray(args)
        return
    many.run(args, items, lambda: _make(args, name), f".{name.partition('.')[2]}", kind)


def _make(args: argparse.Namespace, name: str) -> tuple[Work, str]:
    from ddcm_fast.bulk.run import Opened, Work
    from ddcm_fast.codec.images import to_pil

    codecs: dict[tuple[str, str], Codec] = {}
    condition = condition_of(args)
    as_it_is = args.first == 1 and not args.ignore_checksum  # parts of files are decoded one by one

    def opened(content: bytes) -> Opened:
        header, _ = container.read(content, args.ignore_checksum)
        alike = (header.model, header.dtype, header.config, header.width, header.height)
        # All that a batch could share is the search, and a decoder has none: one by one unless told otherwise.
        most = (args.batch_size or 1) if as_it_is else 1
        return Opened((content, header), alike, most, len(content) // _BYTES)

    def decompress(files: list[tuple[bytes, Header]]) -> list[tuple[bytes, dict[str, int]]]:
        header = files[0][1]
        key = (header.model, header.dtype)
        if key not in codecs:
            codecs[key] = make_codec(args, load_for(args, *key), batch_size=many.WHOLE, exact=True)
            codecs[key].progress = False
        codec, contents = codecs[key], [content for content, _ in files]
        if as_it_is:
            images = [to_pil(image) for image in codec.decode_many(contents, condition)]
        else:
            images = [codec.decompress(data, args.ignore_checksum, condition, args.first) for data in contents]
        return [(image_bytes(image, name), {"width": image.width, "height": image.height}) for image in images]

    how = {"model": args.model, "dtype": args.dtype, "condition": condition}
    if args.classifier is not None:
        how |= {"classifier": args.classifier, "classifier_scale": args.classifier_scale}
    digest = many.settings(name=name, first=args.first, ignore=args.ignore_checksum, **how)
    return Work(opened, decompress), digest


#: Of a waiting picture, a pixel.
_BYTES = 3
