"""``shared``: one matrix product for a whole padded batch, (H, T, S) x (H, S, B * D), where it shares its logits."""

from typing import Optional

import torch

from fairseq_synth.modules.products import full_precision
from fairseq_synth.modules.scorers.logits import Logits
from fairseq_synth.modules.weighted_sum.case import Answer, Case, Way

# below this sum of weights precision would be lost, and every sentence needs its own softmax
SMALLEST_SUM = 1e-30


def takes(case: Case) -> bool:
    """Logits H x T x S of a padded batch that are not causal. (A causal row never reaches a pad.)"""
    logits = case.logits
    if not case.plain or case.causal or case.pads is None or not isinstance(logits, Logits):
        return False
    # in float16 exp(logits - rowmax) underflows where the row's maximum is at a pad
    return (
        logits.rows is None and logits.bias is not None and logits.bias.dim() == 3 and case.value.dtype != torch.float16
    )


def attend(case: Case) -> Optional[Answer]:
    """With E = exp(logits - rowmax), each sentence's softmax is (E @ (V * valid)) / (E @ valid)."""
    logits, value = full_precision(case.logits.full()), case.value.permute(1, 2, 0, 3)  # H x S x B x D
    valid = case.pads.logical_not().t()  # type: ignore[union-attr]  # S x B
    weights = torch.exp(logits - logits.detach().amax(dim=-1, keepdim=True)).to(value.dtype)
    total = torch.matmul(full_precision(weights), valid.to(logits.dtype))  # H x T x B
    if bool((total.detach() < SMALLEST_SUM).any()):
        return None
    values = (value * valid[None, :, :, None].to(value.dtype)).flatten(2)
    sums = torch.matmul(case.drop(weights), values).view(*total.shape, -1)
    return (sums / total.unsqueeze(-1).to(sums.dtype)).permute(1, 2, 0, 3).flatten(2), None


WAY = Way("shared", takes, attend)
