"""Section 1: one attention layer, forward and backward, beside fairseq's, and beside its bare matrix products.

Causal self-attention as the trainer calls it in a decoder layer: need_weights=False, the decoder's future mask, no
padding, no dropout. Legend: T tokens, B sentences, H heads, D head size, C = H * D, N maximum length of the maps.
"""

from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from common import Column, Results, Section, Settings, build_each, race
from fairseq.modules import MultiheadAttention
from fairseq.modules.dynamic_convolution import DynamicConv
from fairseq.modules.lightweight_convolution import LightweightConv
from gemms import record, replay
from torch import Tensor, nn

from fairseq_synth.models.build_attention import build_attention
from fairseq_synth.models.config import SynthTransformerFlatConfig, namespace, nested_config
from fairseq_synth.modules.scorers.base import takers
from fairseq_synth.modules.scorers.spec import parse_spec

Shape = Tuple[int, int, int, int]
# short and long sentences, at the widths of the tiny, the 256-dimensional and the base model
SHAPES: List[Shape] = [
    (16, 64, 4, 32),
    (128, 16, 4, 32),
    (32, 64, 4, 64),
    (256, 8, 4, 64),
    (64, 32, 8, 64),
    (1024, 4, 8, 64),
]
SHORTER = {"mini": [(8, 2, 2, 4)], "small": [SHAPES[0], SHAPES[2], SHAPES[3]], "full": SHAPES}
STOCK = "MultiheadAttention"
CONVOLUTIONS: Dict[str, Callable[..., nn.Module]] = {"DynamicConv": DynamicConv, "LightConv": LightweightConv}
KERNEL = 31  # of most layers of fairseq's lightconv
MAX_LENGTH = 256  # the plugin's default


class Convolution(nn.Module):
    """What stands for self-attention in fairseq's lightconv layers: C -> 2C, gate, convolution, C -> C."""

    def __init__(self, make: Callable[..., nn.Module], dim: int, heads: int) -> None:
        super().__init__()
        self.inwards, self.outwards = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.convolution = make(dim, KERNEL, padding_l=KERNEL - 1, num_heads=heads, weight_softmax=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.outwards(self.convolution(nn.functional.glu(self.inwards(x))))


def synthesizer(spec: str, shape: Shape) -> nn.Module:
    """The plugin's self-attention of a decoder layer."""
    steps, _, heads, size = shape
    parsed = parse_spec(spec, 1, "--variants", heads)[0]
    sizes = {f"{side}_{k}": v for side in ("encoder", "decoder")
             for k, v in (("embed_dim", heads * size), ("attention_heads", heads), ("layers", 1))}  # fmt: skip
    if set(parsed.names).intersection(takers("max_length")):
        sizes["synthesizer_max_length"] = max(MAX_LENGTH, steps)
    options: Dict[str, Any] = {"encoder_self_attention": spec, "decoder_self_attention": spec, **sizes}
    cfg = nested_config(namespace(SynthTransformerFlatConfig, options))
    return build_attention(cfg, "decoder", "self_attn", 0, parsed)


def layer(name: str, shape: Shape) -> nn.Module:
    """fairseq's, or ours with a scorer or mixture of that name."""
    _, _, heads, size = shape
    if name == STOCK:
        return MultiheadAttention(heads * size, heads, self_attention=True)
    if name in CONVOLUTIONS:
        return Convolution(CONVOLUTIONS[name], heads * size, heads)
    return synthesizer(name, shape)


def step(module: nn.Module, shape: Shape, settings: Settings) -> Callable[[], Any]:
    """Forward, and the gradients of the input and of every parameter."""
    steps, batch, heads, size = shape
    where: Dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
    module.to(**where).train()
    x = torch.randn(steps, batch, heads * size, **where).requires_grad_()
    future = torch.full((steps, steps), float("-inf"), **where).triu(1)
    gradient = torch.randn(steps, batch, heads * size, **where)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]

    def run() -> None:
        if isinstance(module, Convolution):
            out = module(x)
        else:
            out = module(x, x, x, need_weights=False, attn_mask=future)[0]
        torch.autograd.grad(out, wanted, gradient, allow_unused=True)

    return run


def run(settings: Settings) -> Iterator[Results]:
    for shape in SHORTER[settings.size]:
        case = " x ".join(map(str, shape))
        if not settings.wants(case):
            continue
        settings.seed_all()
        names = [STOCK, *CONVOLUTIONS, *settings.variants]
        for result in compare(shape, names, settings):
            yield {"case": case, **result}


def compare(shape: Shape, names: List[str], settings: Settings) -> List[Results]:
    steps, skipped = build_each(names, lambda name: step(layer(name, shape), shape, settings))
    return [*skipped, *with_gemms(steps, settings)]


def with_gemms(steps: Dict[str, Callable[[], Any]], settings: Settings) -> List[Results]:
    """Race the steps and the bare products of each, all in turns."""
    products = {name: record(run) for name, run in steps.items()}
    contenders = dict(steps)
    contenders.update({f"{n}/gemm": replay(p, settings.dtype, settings.device) for n, p in products.items()})
    results = {r["name"]: r for r in race(contenders, settings)}
    for name in steps:
        bare = results[f"{name}/gemm"]
        results[name]["gemm_seconds"] = bare["seconds"]
        pairs = zip(bare["times"], results[name]["times"])
        results[name]["gemm_share"] = sorted(b / t for b, t in pairs)[len(bare["times"]) // 2]
        results[name]["gflop"] = sum(p.flops for p in products[name]) / 1e9
    return [results[name] for name in steps]


SECTION = Section(
    "attention",
    "Attention layer, forward and backward (T x B x H x D, causal)",
    "GEMM: its matrix products alone, and their share of its time (100%: nothing but\n"
    "these). ratio: speed against fairseq's MultiheadAttention.",
    (Column("ms", "seconds", scale=1e3), Column("GEMM ms", "gemm_seconds", scale=1e3),
     Column("share", "gemm_share", "{:.0%}")),
    run,
    {"dropout": 0.0, "kernel": KERNEL, "max_length": f"max({MAX_LENGTH}, T)"},
)  # fmt: skip
