"""The attention weights of every layer and head while a model reads a sentence, caught by hooks.

fairseq returns the mean over the heads of one layer. Legend: T queries, S keys, H heads, D head dim.
"""

import contextlib
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.places import Place, place_of
from fairseq_synth.modules.products import full_precision
from fairseq_synth.modules.span_attention import SpanAttention


class Reading(NamedTuple):
    """One sentence. weights: by kind (encoder_self, decoder_self, cross), layers x H x T x S, rows are queries."""

    source: List[str]
    target: List[str]
    weights: Dict[str, Tensor]

    def tokens(self, kind: str) -> Tuple[List[str], List[str]]:
        """Of the rows and of the columns."""
        rows = self.source if kind == "encoder_self" else self.target
        return rows, self.target if kind == "decoder_self" else self.source


@contextlib.contextmanager
def captured(model: nn.Module) -> Iterator[Dict[Place, Tensor]]:
    """Inside, each forward pass of one sentence fills the dict: H x T x S, before dropout."""
    caught: Dict[Place, Tensor] = {}
    handles: List[Any] = []
    exact: List[Any] = []
    try:
        for name, module in model.named_modules():
            place = place_of(name)
            if place is None or not name.endswith(("self_attn", "encoder_attn")):
                continue
            if isinstance(module, SpanAttention):
                handles.append(module.register_forward_hook(_recompute(place, caught)))
            elif isinstance(module, (SynthAttention, MultiheadAttention)):
                handles.append(module.register_forward_pre_hook(_ask_for_heads, with_kwargs=True))
                handles.append(module.register_forward_hook(_keep(place, caught)))
                if isinstance(module, MultiheadAttention) and not module.skip_embed_dim_check:
                    exact.append(module)
                    module.skip_embed_dim_check = True  # torch's own function returns the mean of the heads only
        yield caught
    finally:
        for handle in handles:
            handle.remove()
        for module in exact:
            module.skip_embed_dim_check = False


def _ask_for_heads(module: nn.Module, args: Any, kwargs: Dict[str, Any]) -> Tuple[Any, Dict[str, Any]]:
    return args, {**kwargs, "need_weights": True, "need_head_weights": True}


def _keep(place: Place, caught: Dict[Place, Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Tuple[Tensor, Tensor]) -> None:
        caught[place] = output[1][:, 0].detach().float()

    return hook


def _recompute(place: Place, caught: Dict[Place, Tensor]) -> Any:
    """The span models never hold a T x T matrix of weights; here one is made."""

    def hook(module: Any, args: Any, output: Tensor) -> None:
        with torch.no_grad():
            caught[place] = span_weights(module, args[0][:, 0], args[1])

    return hook


def span_weights(attention: SpanAttention, x: Tensor, positions: Tensor) -> Tensor:
    """What each query of a text's first block pays to the positions before it.

    x: T x C; positions: W x D, row i for distance i + 1. Returns H x T x S, S = T; rows sum to 1, less what persistent
    vectors get; the first row, which sees nothing, is 0.
    """
    steps = x.size(0)
    query = _heads(attention.q_proj(x), attention.num_heads) * attention.scaling
    key = _heads(attention.k_proj(x), attention.num_heads)
    slots = torch.arange(steps, device=x.device)
    distance = slots[:, None] - slots[None, :]
    nearest_is_0 = (distance - 1).clamp(min=0, max=positions.size(0) - 1)
    to_position = torch.einsum("htd,wd->htw", query, positions.to(query.dtype))
    logits = query @ key.transpose(1, 2) + to_position.gather(2, nearest_is_0.expand(len(query), -1, -1))
    logits = logits + attention.span.log_mask((distance - 1).clamp(min=0))
    logits = logits.masked_fill(distance < 1, -torch.inf)
    if attention.memory is not None:
        keys = attention.memory()[0]
        logits = torch.cat([logits, query @ keys.transpose(1, 2)], dim=2)
    return torch.softmax(full_precision(logits), dim=2)[..., :steps].nan_to_num(0.0)


def _heads(x: Tensor, heads: int) -> Tensor:
    """T x C -> H x T x D."""
    return x.view(x.size(0), heads, -1).transpose(0, 1)


def by_kind(caught: Dict[Place, Tensor]) -> Dict[str, Tensor]:
    """Stacked over layers, as :class:`Reading` names them."""
    kinds: Dict[str, List[Tuple[int, Tensor]]] = {}
    for place, weights in caught.items():
        kind = "cross" if place.kind == "cross" else f"{place.side}_self"
        kinds.setdefault(kind, []).append((place.layer, weights))
    order = ("encoder_self", "decoder_self", "cross")
    return {k: torch.stack([w for _, w in sorted(kinds[k], key=lambda lw: lw[0])]) for k in order if k in kinds}
