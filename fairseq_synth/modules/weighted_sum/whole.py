"""``whole``: the reference. It makes the whole matrix of weights, sentence by sentence, and takes every case."""

import torch
from torch import Tensor

from fairseq_synth.modules.products import full_precision
from fairseq_synth.modules.weighted_sum.case import Answer, Case, Way


def attend(case: Case) -> Answer:
    """A softmax for every sentence; the weights are always given."""
    logits = case.logits.full()
    logits = full_precision(logits if logits.dim() == 4 else logits.unsqueeze(0))
    if case.mask is not None:
        logits = logits + case.mask.to(logits.dtype)
    logits = _hide_pads(_hide_future(logits, case), case)
    context = logits.size(-1)
    if case.memory is not None:
        logits = logits.expand(case.memory.logits.size(0), -1, -1, -1)
        logits = torch.cat([logits, full_precision(case.memory.logits).to(logits.dtype)], dim=-1)
    weights = torch.softmax(logits, dim=-1)
    dropped = case.drop(weights.to(case.value.dtype))
    x = torch.matmul(dropped[..., :context], case.value)
    if case.memory is not None:
        x = x + torch.matmul(dropped[..., context:], case.memory.value.to(x.dtype))
    return x.permute(2, 0, 1, 3).flatten(2), weights[..., :context]


def _hide_future(logits: Tensor, case: Case) -> Tensor:
    """Query row t sees the columns up to start + t."""
    steps, keys = logits.shape[-2:]
    if not case.causal or steps == 1:
        return logits
    future = torch.ones(steps, keys, dtype=torch.bool, device=logits.device).triu(case.start + 1)
    return logits.masked_fill(future, torch.finfo(logits.dtype).min)


def _hide_pads(logits: Tensor, case: Case) -> Tensor:
    """The lowest number, not -inf: a row that sees only pads (it is one itself) stays finite."""
    if case.pads is None:
        return logits
    return logits.masked_fill(case.pads[:, None, None, :], torch.finfo(logits.dtype).min)


WAY = Way("whole", lambda case: True, attend)
