"""The models and codecs that a command's options ask for."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from typing import TYPE_CHECKING

from ddcm_fast.cli.arguments import limits_of, progress

if TYPE_CHECKING:
    from ddcm_fast.codec.codec import Codec
    from ddcm_fast.codec.config import CodecConfig
    from ddcm_fast.sampling.model import DiffusionModel


_log = logging.getLogger(__name__)


def load(args: argparse.Namespace, name: str, dtype: str | None = None) -> DiffusionModel:
    """The model of a name that the user gave, in --dtype or else in `dtype`; guided by --classifier if there is one."""
    from ddcm_fast.models.loading import load_model

    start = time.perf_counter()
    model = load_model(name, device=args.device, dtype=args.dtype or dtype, trust=args.trust)
    seconds = time.perf_counter() - start
    where = f"{model.device} in {str(model.dtype).removeprefix('torch.')}"
    _log.info("model %s on %s, loaded in %.1f s", model.name, where, seconds)
    return model if getattr(args, "classifier", None) is None else _guided(args, model)


def _guided(args: argparse.Namespace, model: DiffusionModel) -> DiffusionModel:
    """A model under the guidance of --classifier."""
    from ddcm_fast.tasks.classifiers import load_classifier
    from ddcm_fast.tasks.guidance import ClassifierGuided

    classify = load_classifier(args.classifier, model.device, args.trust)
    return ClassifierGuided(model, classify, scale=args.classifier_scale)


def load_for(args: argparse.Namespace, name: str, dtype: str) -> DiffusionModel:
    """The model of a file: --model, else the one that its header names if that is built in.

    Whether it is the file's is decided by the fingerprint.
    """
    from ddcm_fast.codec.container import refuse_pipelines
    from ddcm_fast.models.loading import require_builtin

    refuse_pipelines(name)
    if args.model is None:
        require_builtin(name)
    return load(args, args.model or name, dtype)


def make_codec(
    args: argparse.Namespace,
    model: DiffusionModel,
    config: CodecConfig | None = None,
    batch_size: int = 1,
    exact: bool = False,
) -> Codec:
    """A codec with the options' backend and limits; without `config` one that only decodes."""
    from ddcm_fast.codebook import backends
    from ddcm_fast.codec.codec import Codec

    _log.info("codebooks by the backend %s", backends.resolve(args.backend, model.device))
    if config is not None:
        _log.info("coding %s", ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(config).items()))
    bars, limits = progress(args), limits_of(args)
    return Codec(model, config, args.backend, batch_size, progress=bars, limits=limits, exact=exact)
