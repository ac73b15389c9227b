"""``dense``: the Dense Synthesizer (Tay et al. 2021, section 3.1): B_i = W2 relu(W1 X_i + b1) + b2."""

import math
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_synth.modules.initial import ZEROS, Rule, glorot
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import AttentionConfig, LengthOptions, Scorer, register_scorer
from fairseq_synth.modules.scorers.logits import Logits


@dataclass
class DenseOptions(LengthOptions):
    share_output: bool = field(
        default=False,
        metadata={"help": "dense: one output matrix for all heads, no biases (the authors' code)"},
    )


def hidden_layer(attention: AttentionConfig, bias: bool = True) -> nn.Linear:
    """W1 of all heads side by side: C -> H * D, initialised as fairseq initialises a query projection."""
    linear = nn.Linear(attention.embed_dim, attention.inner_dim, bias=bias)
    nn.init.xavier_uniform_(linear.weight, gain=1 / math.sqrt(2))
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def head_outputs(attention: AttentionConfig, width: int) -> nn.Parameter:
    """W2 of every head: H x D x width."""
    return nn.Parameter(torch.empty(attention.num_heads, attention.head_dim, width))


def output_rule(parameter: Tensor, name: str) -> Rule:
    """Biases are 0; W2 is Glorot-uniform, head by head."""
    return ZEROS if name.startswith("bias") else glorot(parameter.size(-2), parameter.size(-1))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """T x B x C -> B x H x T x D."""
    steps, batch, _ = x.shape
    return x.view(steps, batch, num_heads, -1).permute(1, 2, 0, 3)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B x H x T x D) times weight (H x D x S), plus bias (H x 1 x S).

    In training the bias is one more row of the weight: its gradient, a sum over all logits, then comes with the
    product. Taken by itself it was a third of the time of a long layer.
    """
    if not torch.is_grad_enabled():
        return torch.matmul(x, weight).add_(bias)
    return torch.matmul(F.pad(x, (0, 1), value=1.0), torch.cat([weight, bias], dim=1))


@register_scorer("dense", DenseOptions)
class DenseScorer(Scorer):
    """A two-layer network per head maps each token to its own row of N logits.

    Parameters: C^2 + C for W1, b1 and C * N + H * N for W2, b2 (the paper's Table 1: d^2 + d N).
    ``share_output`` is the form of the authors' code: no biases, and one W2 (D x N) for all heads.
    """

    def __init__(self, attention: AttentionConfig, options: DenseOptions):
        super().__init__(attention, options)
        self.hidden = hidden_layer(attention, bias=not options.share_output)
        if options.share_output:
            self.weight = nn.Parameter(torch.empty(attention.head_dim, options.max_length))
            self.bias = None
        else:
            self.weight = head_outputs(attention, options.max_length)
            self.bias = nn.Parameter(torch.empty(attention.num_heads, 1, options.max_length))

    def rule(self, name: str) -> Rule:
        return output_rule(getattr(self, name), name)

    def logits(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        rows = split_heads(torch.relu(self.hidden(x)), self.num_heads)
        # the matrix, where it is smaller than what makes it
        if not positions.shared or min(positions.queries, positions.keys) < self.weight.size(-2):
            return Logits(bias=self._matrix(rows, positions))
        columns = self.weight[..., positions.first : positions.end]
        if self.bias is not None:  # one more row of the weight, as in `affine`
            rows = F.pad(rows, (0, 1), value=1.0)
            columns = torch.cat([columns, self.bias[..., positions.first : positions.end]], dim=1)
        return Logits(rows, columns.transpose(-2, -1).expand(*rows.shape[:2], -1, -1))

    def _matrix(self, hidden: Tensor, positions: Positions) -> Tensor:
        """hidden: B x H x T x D. Returns B x H x T x S."""
        first, end = (positions.first, positions.end) if positions.key_index is None else (0, self.max_length)
        if self.bias is None:
            logits = torch.matmul(hidden, self.weight[..., first:end])
        else:
            logits = affine(hidden, self.weight[..., first:end], self.bias[..., first:end])
        return positions.columns(logits, first)
