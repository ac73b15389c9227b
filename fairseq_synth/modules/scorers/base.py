"""The contract of a scorer, and the registry that names them.

A scorer answers one question: the attention logits of query rows ``[t, t + T)`` against key columns ``[0, S)``.
Shapes: B batch, T queries, S keys, H heads, D head dim, C model dim, N maximum length.
"""

import math
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type

import torch
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.positions import Positions

INITS = ("glorot", "normal")


class ScorerConfig(NamedTuple):
    """What a scorer may depend on. ``map_seed`` is already specific to one attention of the model."""

    embed_dim: int
    num_heads: int
    max_length: int = 256
    rank: int = 8
    init: str = "glorot"
    factors: Optional[Tuple[int, int]] = None  # None: the most even a * b = N
    share_output: bool = False
    map_seed: int = 1
    attention_dim: Optional[int] = None  # H * D; None: embed_dim

    @property
    def inner_dim(self) -> int:
        return self.attention_dim or self.embed_dim

    @property
    def head_dim(self) -> int:
        return self.inner_dim // self.num_heads


class Logits(NamedTuple):
    """rows @ columns^T + bias, where each half may be None.

    rows: B x H x T x E; columns: B x H x S x E; bias: (B x) H x T x S.
    """

    rows: Optional[Tensor] = None
    columns: Optional[Tensor] = None
    bias: Optional[Tensor] = None


class Scorer(nn.Module):
    """Base class. A subclass sets the flags and implements :meth:`forward`.

    uses_tokens:  False -> logits are H x T x S, shared by the whole batch; True -> B x H x T x S.
    needs_keys:   True -> :meth:`forward` receives projected queries and keys (and the keys are cached).
    options:      the fields of :class:`ScorerConfig` (beyond the shapes) that have an effect.
    max_length:   N, or None where any length will do.
    """

    uses_tokens: bool = True
    needs_keys: bool = False
    options: Sequence[str] = ()

    def __init__(self, config: ScorerConfig):
        super().__init__()
        self.max_length: Optional[int] = config.max_length if "max_length" in self.options else None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls) and "terms" not in vars(cls):
            cls.terms = Scorer.terms  # type: ignore[method-assign]  # those of a parent are of the parent's logits

    def forward(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        """Logits, before any mask.

        x: T x B x C, the layer's input at the query positions. q: B x H x T x D, already divided by sqrt(D);
        k: B x H x S x D; both None unless ``needs_keys``. Returns (B x) H x T x S.
        """
        raise NotImplementedError

    def terms(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        """The same logits before the product that makes them, where there is one; for shared positions only.

        A causal attention then makes half of them, and a mixture makes those of all its scorers by one product.
        """
        return Logits(bias=self(x, q, k, positions))


SCORERS: Dict[str, Type[Scorer]] = {}


def register_scorer(name: str) -> Callable[[Type[Scorer]], Type[Scorer]]:
    """Class decorator: makes a scorer usable in ``--encoder-self-attention`` and the like.

    Raises ValueError where the name is taken, or holds a character that specs use (``+ , *``) or a space.
    """

    def register(cls: Type[Scorer]) -> Type[Scorer]:
        if SCORERS.get(name, cls) is not cls:
            raise ValueError(f"scorer {name!r} is already registered by {SCORERS[name].__name__}")
        if not name or any(c in "+,*" or c.isspace() for c in name):
            raise ValueError(f"scorer name {name!r}: '+', ',', '*' and spaces have a meaning in specs")
        SCORERS[name] = cls
        return cls

    return register


def scorer_names() -> List[str]:
    return sorted(SCORERS)


def build_scorer(name: str, config: ScorerConfig) -> Scorer:
    return SCORERS[name](config)


def init_map(tensor: Tensor, init: str, variance: float = 1.0, generator: Optional[torch.Generator] = None) -> None:
    """Fill a logit map H x N x M in place.

    ``glorot``: the authors' initialiser, fans guessed from the three dimensions, which makes the attention start
    practically uniform. ``normal``: N(0, variance).
    """
    if init == "normal":
        values = torch.randn(tensor.shape, generator=generator) * math.sqrt(variance)
    elif init == "glorot":
        heads, rows, columns = tensor.shape
        bound = math.sqrt(6.0 / (columns * (rows + heads)))
        values = (2 * torch.rand(tensor.shape, generator=generator) - 1) * bound
    else:
        raise UsageError(f"--synthesizer-init {init}: not one of {', '.join(INITS)}")
    with torch.no_grad():
        tensor.copy_(values)
