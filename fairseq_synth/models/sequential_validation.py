"""Refuses, in one line each, what the options of a sequential language model cannot mean."""

import dataclasses
import math
from typing import Any

from fairseq_synth.errors import UsageError
from fairseq_synth.models import limits

DEFAULT_SPAN_LOSS = 5e-7  # of SpanOptions


def check_options(cfg: Any) -> None:
    """Raises UsageError, one line each."""
    limits.at_least(1, ((name, getattr(cfg, name)) for name in ("layers", "embed_dim", "attention_span", "span_ramp")))
    limits.at_least(0, ((name, getattr(cfg, name)) for name in ("ffn_embed_dim", "span_loss", "initial_span")))
    limits.probabilities((name, getattr(cfg, name)) for name in ("dropout", "embedding_dropout"))
    if cfg.initial_span > cfg.attention_span:
        raise UsageError(
            f"--initial-span {cfg.initial_span:g}: must be between 0 and --attention-span {cfg.attention_span}; lower "
            f"it or raise the maximum"
        )
    _check_effects(cfg)
    inner, option = (cfg.attention_dim, "--attention-dim") if cfg.attention_dim else (cfg.embed_dim, "--embed-dim")
    if inner < 1 or cfg.attention_heads < 1 or inner % cfg.attention_heads:
        raise UsageError(f"{option} {inner}: must be a positive multiple of --attention-heads {cfg.attention_heads}")
    if cfg.persistent_memory < 0:
        raise UsageError(f"--persistent-memory {cfg.persistent_memory}: must be 0 (none) or more")
    if cfg.ffn_embed_dim <= 0 and not cfg.persistent_memory:
        raise UsageError(
            f"--ffn-embed-dim {cfg.ffn_embed_dim} with --persistent-memory 0: the layers would only average; give "
            f"one of them a positive size"
        )
    if cfg.keep_feed_forward and not (cfg.persistent_memory and cfg.ffn_embed_dim > 0):
        raise UsageError(
            "--keep-feed-forward: has an effect only with --persistent-memory and a positive --ffn-embed-dim"
        )


def _check_effects(cfg: Any) -> None:
    """Options that would do nothing, or nothing good."""
    defaults = {f.name: f.default for f in dataclasses.fields(cfg)} if dataclasses.is_dataclass(cfg) else {}
    if cfg.fixed_span and cfg.span_loss not in (0, defaults.get("span_loss", DEFAULT_SPAN_LOSS)):
        raise UsageError(f"--fixed-span: spans that do not learn have no use for --span-loss {cfg.span_loss}; drop one")
    if cfg.adaptive_cutoff:
        rising = limits.rising_cutoffs("adaptive_cutoff", cfg.adaptive_cutoff)
        if cfg.adaptive_factor < 1 or not math.isfinite(cfg.adaptive_factor):
            raise UsageError(f"--adaptive-factor {cfg.adaptive_factor:g}: must be at least 1, and finite")
        if cfg.embed_dim // cfg.adaptive_factor ** len(rising) < 1:
            raise UsageError(
                f"--adaptive-factor {cfg.adaptive_factor:g}: leaves nothing of --embed-dim {cfg.embed_dim} for the "
                f"last of {len(rising) + 1} bands; lower it, or leave out bands"
            )
    elif cfg.adaptive_factor != 4:
        raise UsageError(
            f"--adaptive-factor {cfg.adaptive_factor:g}: has no effect without --adaptive-cutoff; add it, or drop the "
            f"factor"
        )
