"""What a model has learned that can be read off its weights: spans, mixture weights, maps, parameters."""

from typing import Any, Iterator, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from fairseq_synth.modules.adaptive_span import AdaptiveSpan
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.places import Place, place_of
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Scorer, scorer_name
from fairseq_synth.modules.scorers.composite import CompositeScorer
from fairseq_synth.modules.scorers.mixture import Mixture


class Spans(NamedTuple):
    """Of one attention. tokens: z of every head; longest: S."""

    place: Place
    tokens: List[float]
    longest: int
    ramp: int
    learned: bool


class MixtureWeights(NamedTuple):
    """Of one attention. weights: K x H, each column sums to 1."""

    place: Place
    scorers: List[str]
    weights: List[List[float]]


class Map(NamedTuple):
    """Logits of one scorer that are the same for every sentence: H x N x N; of a trained map or a fixed one."""

    place: Place
    scorer: str
    logits: Tensor
    causal: bool
    trained: bool


def _placed(model: nn.Module, kind: Any) -> Iterator[Tuple[Place, Any]]:
    for name, module in model.named_modules():
        place = place_of(name)
        if isinstance(module, kind) and place is not None:
            yield place, module


def spans(model: nn.Module) -> List[Spans]:
    """Of every attention that has them, learned or not, bottom layer first."""
    return [
        Spans(place, span.spans().tolist(), span.max_span, span.ramp, span.span_ratio.requires_grad)
        for place, span in _placed(model, AdaptiveSpan)
    ]


def mixtures(model: nn.Module) -> List[MixtureWeights]:
    return [
        MixtureWeights(place, [scorer_name(s) for s in mixture.scorers], mixture.weights().detach().tolist())
        for place, mixture in _placed(model, Mixture)
    ]


def maps(model: nn.Module) -> List[Map]:
    """Of every scorer whose logits depend on positions alone, user-made ones included."""
    return [found for place, attention in _placed(model, SynthAttention) for found in _maps_of(place, attention)]


def _maps_of(place: Place, attention: SynthAttention) -> Iterator[Map]:
    for scorer in _simple_scorers(attention.scorer):
        size: Any = scorer.max_length
        if scorer.depends_on != "positions" or size is None:
            continue
        nothing = next(attention.parameters()).new_zeros(size, 1, attention.embed_dim)
        with torch.no_grad():
            logits = scorer(nothing, None, None, Positions(0, size, size)).detach()
        trained = any(p.requires_grad for p in scorer.parameters())
        yield Map(place, scorer_name(scorer), logits, attention.causal and place.kind == "self", trained)


def _simple_scorers(scorer: Any) -> Iterator[Scorer]:
    """Those that mixtures and different heads are made of."""
    if isinstance(scorer, CompositeScorer):
        for part in scorer.scorers:
            yield from _simple_scorers(part)
    else:
        yield scorer
