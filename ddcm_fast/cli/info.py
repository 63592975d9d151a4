"""`ddcm info`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from ddcm_fast.cli.arguments import add_json, path_or
from ddcm_fast.cli.terminal import say
from ddcm_fast.codec import container
from ddcm_fast.files import STDIN, read
from ddcm_fast.sampling.condition import ConditionHash

_ALWAYS_SHOWN = ("rule", "kind", "K", "T", "schedule", "seed")


def add_parser(commands: Any) -> None:
    """The subcommand `info`."""
    p = commands.add_parser("info", description="Describe a .ddcm file.")
    p.add_argument("input", type=path_or(STDIN), help="a .ddcm file")
    p.add_argument("--ignore-checksum", action="store_true", help="read a damaged file as it is")
    add_json(p, "it")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    data = read(args.input, start=container.MAGIC)
    header, payload = container.read(data, args.ignore_checksum)
    if args.json:
        say(json.dumps(_facts(header, data, payload)))
    else:
        _describe(header, data, payload)


def _facts(header: container.Header, data: bytes, payload: bytes) -> dict[str, Any]:
    """All that a file says of itself; a condition that does not travel is its hash."""
    facts = dataclasses.asdict(header)
    if isinstance(header.condition, ConditionHash):
        facts["condition"] = {"hash": header.condition.value.hex()}
    return facts | {
        "fingerprint": header.fingerprint.hex(),
        "bytes": len(data),
        "header_bytes": len(data) - len(payload),
        "bpp": None if header.model == container.PIPELINE else 8 * len(data) / (header.width * header.height),
    }


def _describe(header: container.Header, data: bytes, payload: bytes) -> None:
    rate = ""
    if header.model != container.PIPELINE:  # whose pictures' size no file says
        say(f"image      {header.width}x{header.height}")
        rate = f", {8 * len(data) / (header.width * header.height):.4f} bpp"
    say(f"size       {len(data)} bytes{rate} ({len(data) - len(payload)} bytes of header)")
    say(f"model      {header.model} (fingerprint {header.fingerprint.hex()}), {header.dtype}")
    for field in dataclasses.fields(header.config):
        value = getattr(header.config, field.name)
        if value != field.default or field.name in _ALWAYS_SHOWN:
            say(f"{field.name:<10} {value}")
    if header.condition is not None:
        hidden = isinstance(header.condition, ConditionHash)
        say(f"condition  {'does not travel with the file' if hidden else header.condition}")
    if header.edit is not None:
        say(f"edited     from step {header.edit.start} on: {header.edit.condition or 'no condition'}")
