"""Scorers: the ways to make attention logits. One file each, registered by name; the folder imports itself."""

import importlib
import pkgutil

from fairseq_synth.modules.scorers.base import (
    SCORERS,
    AttentionConfig,
    LengthOptions,
    NoOptions,
    Scorer,
    build_scorer,
    register_scorer,
    scorer_names,
)
from fairseq_synth.modules.scorers.logits import HeadLogits, Logits
from fairseq_synth.modules.scorers.maps import MapOptions

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = [
    "SCORERS",
    "AttentionConfig",
    "HeadLogits",
    "LengthOptions",
    "Logits",
    "MapOptions",
    "NoOptions",
    "Scorer",
    "build_scorer",
    "register_scorer",
    "scorer_names",
]
