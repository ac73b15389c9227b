"""What the training log and TensorBoard show beside the losses: mixture weights and the trainable share."""

from typing import List, NamedTuple, Tuple

import torch
from fairseq.logging import metrics
from torch import nn

from fairseq_synth.inspection.findings import place_of, scorer_name
from fairseq_synth.modules.mixture import Mixture


class Watched(NamedTuple):
    """mixtures: the module, and a name for the weight of each of its scorers. share: of the parameters that train."""

    mixtures: List[Tuple[Mixture, List[str]]]
    share: float


def log_learned(model: nn.Module) -> None:
    """Into fairseq's log, if the model is being trained; call it once per forward pass.

    mixture_PLACE_SCORER: the weight of a scorer in one attention, mean over heads; PLACE: decoder_0_self and the
    like. trainable_percent: of all parameters, those that the optimizer moves; only logged where some are frozen.
    """
    if not (model.training and torch.is_grad_enabled()):
        return
    # found once, since neither changes in a training; not an attribute, which would register the modules again
    watched: Watched = model.__dict__.get("_watched") or model.__dict__.setdefault("_watched", _watch(model))
    for i, (mixture, names) in enumerate(watched.mixtures):
        for name, weight in zip(names, mixture.weights().detach().mean(1)):
            metrics.log_scalar(name, weight, weight=1, priority=1200 + i, round=3)
    if watched.share < 100:
        metrics.log_scalar("trainable_percent", watched.share, weight=1, priority=60, round=2)


def _watch(model: nn.Module) -> Watched:
    mixtures = []
    for name, module in model.named_modules():
        place = place_of(name)
        if isinstance(module, Mixture) and place is not None:
            label = f"mixture_{place.side}_{place.layer}_{place.kind}"
            mixtures.append((module, [f"{label}_{scorer_name(scorer)}" for scorer in module.scorers]))
    return Watched(mixtures, trainable_percent(model))


def trainable_percent(model: nn.Module) -> float:
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return 100 * sum(n for n, trains in counts if trains) / max(1, sum(n for n, _ in counts))
