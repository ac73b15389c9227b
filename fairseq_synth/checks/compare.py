"""What the invariants do with a case: run its attention or model, and compare."""

from typing import Any, List, Tuple

import torch
from torch import Tensor

from fairseq_synth.checks.case import LENGTHS, tokens
from fairseq_synth.modules.attention import SynthAttention


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where one is not finite."""
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    difference = (a.double() - b.double()).abs()
    return float("inf") if not bool(torch.isfinite(difference).all()) else float(difference.max().detach())


def attend(attention: SynthAttention, x: Tensor, **options: Any) -> Tensor:
    """The attention's output, x also serving as the encoder's output in cross-attention."""
    return attention(x, x, x, need_weights=False, **options)[0]


def sentences(x: Tensor, lengths: Tuple[int, ...] = LENGTHS) -> List[Tensor]:
    """Each alone, without its pads: n x 1 x C."""
    return [x[:n, b : b + 1] for b, n in enumerate(lengths)]


def model_inputs(left: bool = False) -> Tuple[Tensor, Tensor]:
    """Source and previous target tokens, B x S and B x T."""
    target = tokens((6, 4, 3), pad_left=False, seed=9)
    target[:, 0] = 2
    return tokens(pad_left=left), target


def decode(model: Any, source: Tensor, target: Tensor) -> Tensor:
    """Logits, B x T x V."""
    return model(source, source.ne(1).sum(1), target)[0]
