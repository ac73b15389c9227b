"""What the training log and TensorBoard show beside the losses: spans, mixture weights and the trainable share."""

import re
from typing import List, NamedTuple, Tuple

import torch
from fairseq.logging import metrics
from torch import nn

from fairseq_synth.modules.adaptive_span import AdaptiveSpan, adaptive_spans
from fairseq_synth.modules.places import place_of
from fairseq_synth.modules.scorers.base import scorer_name
from fairseq_synth.modules.scorers.mixture import Mixture


class Watched(NamedTuple):
    """mixtures: the module, and a name for the weight of each of its scorers. share: of the parameters that train, in
    percent."""

    mixtures: List[Tuple[Mixture, List[str]]]
    spans: List[AdaptiveSpan]
    share: float


def log_learned(model: nn.Module) -> None:
    """Into fairseq's log; call it once per forward pass of a training.

    span_mean, span_max: over all heads, in tokens; span_layer_N. mixture_PLACE_SCORER: the weight of a scorer in one
    attention, mean over heads; PLACE: decoder_0_self and the like. trainable_percent: of all parameters, those that the
    optimizer moves; only where some are frozen.
    """
    # found once, since neither changes in a training; not an attribute, which would register the modules again
    watched: Watched = model.__dict__.get("_watched") or model.__dict__.setdefault("_watched", _watch(model))
    if watched.spans:
        log_spans(watched.spans)
    for i, (mixture, names) in enumerate(watched.mixtures):
        for name, weight in zip(names, mixture.weights().detach().mean(1)):
            metrics.log_scalar(name, weight, weight=1, priority=1200 + i, round=3)
    if watched.share < 100:
        metrics.log_scalar("trainable_percent", watched.share, weight=1, priority=60, round=2)


def log_spans(spans: List[AdaptiveSpan]) -> None:
    """Mean and maximum over all heads and the mean of every layer, in tokens."""
    tokens = [span.spans() for span in spans]  # encoder and decoder may have different numbers of heads
    metrics.log_scalar("span_mean", torch.cat(tokens).mean(), weight=1, priority=50, round=2)
    metrics.log_scalar("span_max", torch.cat(tokens).max(), weight=1, priority=51, round=2)
    for layer, of_layer in enumerate(tokens):
        metrics.log_scalar(f"span_layer_{layer}", of_layer.mean(), weight=1, priority=1000 + layer, round=1)


def _watch(model: nn.Module) -> Watched:
    mixtures = []
    for name, module in model.named_modules():
        place = place_of(name)
        if isinstance(module, Mixture) and place is not None:
            part = re.search(r"\.scorers\.(\d+)$", name)  # one of several, in different heads
            label = f"mixture_{place.side}_{place.layer}_{place.kind}" + (f"_{part.group(1)}" if part else "")
            mixtures.append((module, [f"{label}_{scorer_name(scorer)}" for scorer in module.scorers]))
    return Watched(mixtures, adaptive_spans(model), trainable_percent(model))


def trainable_percent(model: nn.Module) -> float:
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return 100 * sum(n for n, trains in counts if trains) / max(1, sum(n for n, _ in counts))
