"""What a model has learned that can be read off its weights: spans, mixture weights, maps, parameters."""

import re
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from fairseq_synth.modules.adaptive_span import AdaptiveSpan
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.mixture import Mixture
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers import SCORERS


class Place(NamedTuple):
    """Where an attention stands. side: encoder or decoder; kind: self or cross; layer: from 0, the bottom."""

    side: str
    kind: str
    layer: int

    @property
    def group(self) -> str:
        """The attentions that belong in one picture."""
        return f"{self.side} {self.kind}-attention"


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


def place_of(name: str) -> Optional[Place]:
    """From a module's or parameter's name; None outside of layers."""
    found = re.search(r"(?:(encoder|decoder)\.)?layers\.(\d+)\.(self_attn|encoder_attn)", name)
    if not found:
        return None
    return Place(found.group(1) or "decoder", "self" if found.group(3) == "self_attn" else "cross", int(found.group(2)))


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


def scorer_name(scorer: nn.Module) -> str:
    """As in specs."""
    names = [name for name, cls in SCORERS.items() if cls is type(scorer)]
    return names[0] if names else type(scorer).__name__


def maps(model: nn.Module) -> List[Map]:
    """Of every scorer whose logits depend on positions alone, user-made ones included."""
    return [found for place, attention in _placed(model, SynthAttention) for found in _maps_of(place, attention)]


def _maps_of(place: Place, attention: SynthAttention) -> Iterator[Map]:
    whole = attention.scorer
    scorers: Any = whole.scorers if isinstance(whole, Mixture) else [whole]
    for scorer in scorers:
        size: Any = scorer.max_length
        if scorer.uses_tokens or size is None:
            continue
        nothing = next(attention.parameters()).new_zeros(size, 1, attention.embed_dim)
        with torch.no_grad():
            logits = scorer(nothing, None, None, Positions(0, size, size)).detach()
        trained = any(p.requires_grad for p in scorer.parameters())
        yield Map(place, scorer_name(scorer), logits, attention.causal and place.kind == "self", trained)
