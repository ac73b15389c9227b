"""Persistent memory vectors (Sukhbaatar et al. 2019, "Augmenting Self-attention with Persistent Memory", eq. 6-9)."""

import math
from typing import Tuple

import torch
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.initial import Rule, fill


class PersistentMemory(nn.Module):
    """N key and value vectors per head that every position sees, in the same softmax as its context.

    They have no position and are never masked. N vectors cost what a feed-forward layer of inner size N costs.

    The parameters are kept small, N(0, 1/D) and N(0, 1/N), and enlarged to unit variance where they are used: the
    factors multiply the learning rate, so this is not the same as drawing them from N(0, 1).

    Args:
        num_heads, size, head_dim: H, N and D.

    Raises:
        UsageError: size below 1.
    """

    component = "ffn"  # for --freeze: it does the work of the feed-forward sublayers

    def __init__(self, num_heads: int, size: int, head_dim: int) -> None:
        super().__init__()
        if size < 1:
            raise UsageError(f"--persistent-memory {size}: must be at least 1 vector per head; 0 leaves the memory out")
        self.size = size
        self.key_scale, self.value_scale = math.sqrt(head_dim), math.sqrt(size)
        self.key = nn.Parameter(torch.empty(num_heads, size, head_dim))
        self.value = nn.Parameter(torch.empty(num_heads, size, head_dim))
        for name, parameter in self.named_parameters():
            fill(parameter, self.rule(name))

    def extra_repr(self) -> str:
        return "heads={}, size={}, head_dim={}".format(*self.key.shape)

    def rule(self, name: str) -> Rule:
        """How its parameters start."""
        return Rule("normal", 1 / (self.key_scale if name == "key" else self.value_scale))

    def forward(self) -> Tuple[Tensor, Tensor]:
        """Keys and values, both H x N x D."""
        return self.key * self.key_scale, self.value * self.value_scale
