"""Scorers: the ways to make attention logits. One file each, registered by name."""

from fairseq_synth.modules.scorers import (
    dense,
    dot_product,
    factorized_dense,
    factorized_random,
    fixed_random,
    random,
)
from fairseq_synth.modules.scorers.base import (
    SCORERS,
    Scorer,
    ScorerConfig,
    build_scorer,
    register_scorer,
    scorer_names,
)

__all__ = [
    "SCORERS",
    "Scorer",
    "ScorerConfig",
    "build_scorer",
    "dense",
    "dot_product",
    "factorized_dense",
    "factorized_random",
    "fixed_random",
    "random",
    "register_scorer",
    "scorer_names",
]
