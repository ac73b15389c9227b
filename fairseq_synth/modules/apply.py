"""The two ways to apply logits to values: once for the whole batch, or sentence by sentence.

Legend: B batch, T queries, S keys, H heads, D head dim, C = H * D.
"""

from typing import Callable, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from fairseq_synth.modules.block_attention import full_precision
from fairseq_synth.modules.decoding_state import Memory

# below this sum of weights the shared way would lose precision, and every sentence gets its own softmax
SMALLEST_SUM = 1e-30
Dropout = Callable[[Tensor], Tensor]


class Extra(NamedTuple):
    """Slots that every query sees beside its context, in the same softmax. logits: B x H x T x N; value: H x N x D."""

    logits: Tensor
    value: Tensor


def attend_shared(logits: Tensor, value: Tensor, padding_mask: Tensor, dropout: Dropout) -> Optional[Tensor]:
    """One matrix product for the whole padded batch, (H, T, S) x (H, S, B * D), for logits H x T x S.

    Every pad (padding_mask: B x S) must stand to the right of its sentence, value is B x H x S x D. With
    E = exp(logits - rowmax), each sentence's softmax is (E @ (V * valid)) / (E @ valid).

    Returns T x B x C, or None where precision asks for a softmax per sentence.
    """
    if value.dtype == torch.float16:
        return None  # exp(logits - rowmax) underflows where the row's maximum is at a pad
    logits, value = full_precision(logits), value.permute(1, 2, 0, 3)  # H x S x B x D
    valid = padding_mask.logical_not().t()  # S x B
    weights = torch.exp(logits - logits.detach().amax(dim=-1, keepdim=True)).to(value.dtype)
    total = torch.matmul(full_precision(weights), valid.to(logits.dtype))  # H x T x B
    if bool((total.detach() < SMALLEST_SUM).any()):
        return None
    values = (value * valid[None, :, :, None].to(value.dtype)).flatten(2)
    sums = torch.matmul(dropout(weights), values).view(*total.shape, -1)
    return (sums / total.unsqueeze(-1).to(sums.dtype)).permute(1, 2, 0, 3).flatten(2)


def attend(
    logits: Tensor,
    memory: Memory,
    causal: bool,
    dropout: Dropout,
    attn_mask: Optional[Tensor] = None,
    extra: Optional[Extra] = None,
) -> Tuple[Tensor, Tensor]:
    """A softmax for every sentence, for logits (B x) H x T x S; attn_mask (T x S) is added to them.

    Returns T x B x C and the weights of the context before dropout, (B or 1) x H x T x S.
    """
    logits = full_precision(logits if logits.dim() == 4 else logits.unsqueeze(0))
    if attn_mask is not None:
        logits = logits + attn_mask.to(logits.dtype)
    logits = _hide_future(logits, memory.start, causal)
    if memory.padding_mask is not None:
        hidden = memory.padding_mask[:, None, None, :]
        # the lowest number, not -inf: a row that sees only pads (it is one itself) stays finite
        logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
    context = logits.size(-1)
    if extra is not None:
        logits = logits.expand(extra.logits.size(0), -1, -1, -1)
        logits = torch.cat([logits, full_precision(extra.logits).to(logits.dtype)], dim=-1)
    weights = torch.softmax(logits, dim=-1)
    dropped = dropout(weights.to(memory.value.dtype))
    x = torch.matmul(dropped[..., :context], memory.value)
    if extra is not None:
        x = x + torch.matmul(dropped[..., context:], extra.value.to(x.dtype))
    return x.permute(2, 0, 1, 3).flatten(2), weights[..., :context]


def _hide_future(logits: Tensor, start: int, causal: bool) -> Tensor:
    """Query row t sees the columns up to start + t."""
    steps, keys = logits.shape[-2:]
    if not causal or steps == 1:
        return logits
    future = torch.ones(steps, keys, dtype=torch.bool, device=logits.device).triu(start + 1)
    return logits.masked_fill(future, torch.finfo(logits.dtype).min)
