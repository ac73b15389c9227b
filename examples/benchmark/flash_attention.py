"""Section 6: the attention layer beside a fused kernel, by length: what replaces the queries and keys of long texts.

``flash`` is what one would write today: one projection to queries, keys and values, PyTorch's
``scaled_dot_product_attention`` under its causal flag (flash attention, on GPUs in half precision and on CPUs), and
the output's projection. Causal self-attention, forward and backward, the same number of tokens at every length.
"""

from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from attention import Shape, step, synthesizer, with_gemms
from common import Column, Results, Section, Settings, build_each
from language_model import SHARE, free_memory, refuse_beyond
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_synth.modules import products
from fairseq_synth.modules.scorers import SCORERS
from fairseq_synth.modules.scorers.spec import parse_spec

STOCK, BARE = "flash", "one large product"
LENGTHS: Dict[str, Tuple[int, ...]] = {
    "mini": (16, 32),
    "small": (256, 512),
    "full": (256, 512, 1024, 2048, 4096, 8192),
}
TOKENS = {"mini": 64, "small": 2048, "full": 8192}  # of a batch
HEADS, SIZE = {"mini": 2, "small": 8, "full": 8}, {"mini": 8, "small": 64, "full": 64}
SIDE = {"mini": 64, "small": 2048, "full": 4096}  # of the matrices of the large product
COPIES = 6  # float32 or so of a map: itself, its gradient, softmax, both halves of its backward


class Flash(nn.Module):
    """T x B x C -> T x B x C, as the other layers of the race."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.inwards, self.outwards, self.heads = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), heads

    def forward(self, query: Tensor, *_: Any, **__: Any) -> Tuple[Tensor, None]:
        steps, batch, dim = query.shape
        parts = self.inwards(query).view(steps, batch, 3, self.heads, -1).permute(2, 1, 3, 0, 4)
        x = F.scaled_dot_product_attention(*parts.unbind(0), is_causal=True)  # B x H x T x D
        return self.outwards(x.permute(2, 0, 1, 3).reshape(steps, batch, dim)), None


def run(settings: Settings) -> Iterator[Results]:
    for length in LENGTHS[settings.size]:
        case = f"{length} tokens"
        if settings.wants(case):
            settings.seed_all()
            batch = max(1, TOKENS[settings.size] // length)
            for result in compare((length, batch, HEADS[settings.size], SIZE[settings.size]), settings):
                yield {"case": case, **result}


def compare(shape: Shape, settings: Settings) -> List[Results]:
    free = SHARE * free_memory(settings)

    def build(name: str) -> Callable[[], Any]:
        if name == BARE:
            return large_product(SIDE[settings.size], settings)
        refuse_beyond(free, 0, memory(name, shape), shape[0])
        layer = Flash(shape[2] * shape[3], shape[2]) if name == STOCK else synthesizer(name, shape)
        return step(layer, shape, settings)

    built, skipped = build_each([STOCK, *settings.variants, BARE], build)
    results = with_gemms(built, settings)
    for name in ("ratio", "ratio_low", "ratio_high"):
        del results[-1][name]  # no layer, so nothing to compare
    for result in results:
        result["gflops"] = result["gflop"] / result["seconds"]
        result["peak_share"] = result["gflops"] / results[-1]["gflop"] * results[-1]["seconds"]
    return [*skipped, *results]


def large_product(side: int, settings: Settings) -> Callable[[], Any]:
    """As fast as this machine multiplies."""
    left, right = (torch.randn(side, side, device=settings.device).to(settings.dtype) for _ in range(2))
    multiply = products.product if products.is_faster(side**3, left, right) else torch.mm
    return lambda: multiply(left, right)


def memory(name: str, shape: Shape) -> float:
    """Bytes of the maps and of the attention weights, roughly; flash attention holds none."""
    if name == STOCK:
        return 0.0
    steps, batch, heads, _ = shape
    tokens = any(SCORERS[scorer].depends_on == "tokens" for scorer in parse_spec(name, 1, "--variants")[0].names)
    return COPIES * 4.0 * heads * steps**2 * (batch if tokens else 1)


SECTION = Section(
    "flash_attention",
    "Attention layer beside flash attention, by length (causal, forward and backward)",
    "GFLOP/s of all its products. share: its products alone, of its time. peak: GFLOP/s\n"
    "against one large product of square matrices. ratio: speed against flash.",
    (Column("ms", "seconds", scale=1e3), Column("GFLOP/s", "gflops", "{:.0f}"),
     Column("share", "gemm_share", "{:.0%}"), Column("peak", "peak_share", "{:.0%}")),
    run,
    {"tokens": TOKENS, "heads": HEADS, "head_size": SIZE, "product": SIDE},
)  # fmt: skip
