"""A run over many by Ray: the same command, one shard of it in each actor."""

from __future__ import annotations

import argparse
import copy
import json
from importlib import import_module
from typing import Any

from ddcm_fast.cli.terminal import say
from ddcm_fast.errors import DDCMError, MissingExtraError, SomeFailedError, first_line

_FEW = 2


def run(args: argparse.Namespace) -> None:
    """Start --actors actors on Ray's cluster (RAY_ADDRESS, else this machine), each with a GPU if there are any.

    A shard whose actor dies is begun again by another; what it had done is there. Raises SomeFailedError.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise MissingExtraError("--engine ray needs the package ray: pip install 'ddcm-fast[ray]'") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = args.actors or gpus or _FEW
        remote = ray.remote(num_gpus=1 if gpus else 0, num_cpus=1, max_retries=3)(shard)
        # The actors may stand in another folder.
        options = vars(args) | {"inputs": [path.absolute() for path in args.inputs], "output": args.output.absolute()}
        answers = [remote.remote(options, i, count) for i in range(count)]
        try:
            said = ray.get(answers)
        except ray.exceptions.RayError as error:
            raise DDCMError(f"a worker of Ray failed: {first_line(error)}; give the command again to go on") from error
    finally:
        ray.shutdown()
    failed = sum(facts.get("failed", 0) for facts in said)
    errors = [facts["error"] for facts in said if "error" in facts]
    if errors:
        raise DDCMError(errors[0])
    total = {key: sum(facts[key] for facts in said) for key in ("images", "done", "skipped", "failed", "bytes")}
    if getattr(args, "json", False):
        say(json.dumps({"output": str(args.output), **total}))
    elif not args.quiet:
        say("{}: {done} done, {skipped} were there, {failed} failed, {bytes} bytes".format(args.output, **total))
    if failed:
        raise SomeFailedError(f"{failed} of {total['images']} failed: the manifests in {args.output} say why")


def shard(options: dict[str, Any], rank: int, workers: int) -> dict[str, Any]:
    """One worker's part, in a process of its own: its counts, or {"error": what a user can mend}."""
    import contextlib
    import io

    args = argparse.Namespace(**copy.copy(options))
    args.engine, args.actors, args.workers, args.quiet, args.json = None, None, f"{rank}/{workers}", True, True
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            args.run(args)
    except SomeFailedError:
        pass
    except DDCMError as error:
        return {"error": str(error)}
    facts: dict[str, Any] = json.loads(said.getvalue())
    return facts
