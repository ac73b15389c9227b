"""What is checked: one spec, as a bare attention and inside a tiny model, on small seeded inputs in float64."""

from argparse import Namespace
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_synth.models.build_attention import build_attention
from fairseq_synth.models.config import SynthTransformerFlatConfig, namespace, nested_config
from fairseq_synth.models.transformer import SynthTransformerBase
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.scorers.base import takers
from fairseq_synth.modules.scorers.spec import LayerSpec, parse_spec

LENGTHS = (7, 5, 2)  # of the three sentences of a batch
MAX_LENGTH = 12
EMBED_DIM, HEADS = 16, 2


def dictionary(symbols: int = 20) -> Dictionary:
    words = Dictionary()
    for i in range(symbols):
        words.add_symbol(f"w{i}")
    return words


class Case(NamedTuple):
    """A spec to check, in one place of the model. side: encoder, decoder or cross."""

    spec: str
    side: str
    options: Tuple[Tuple[str, Any], ...] = ()
    seed: int = 1

    def config(self) -> Namespace:
        """Options of a model of 2+2 layers with the spec in its place and dot_product elsewhere."""
        sizes = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in _SIZES.items()}
        specs = {"encoder_self_attention": "dot_product", "decoder_self_attention": "dot_product"}
        specs["cross_attention" if self.side == "cross" else f"{self.side}_self_attention"] = self.spec
        overrides = {**sizes, **specs, "dropout": 0.0, "synthesizer_max_length": MAX_LENGTH}
        overrides.update(dict(self.options))
        if not set(self.spec_of_layer().names).intersection(takers("max_length")):
            del overrides["synthesizer_max_length"]
        return namespace(SynthTransformerFlatConfig, overrides)

    def spec_of_layer(self) -> LayerSpec:
        return parse_spec(self.spec, 1, "SPEC")[0]

    def model(self, seed: Optional[int] = None) -> SynthTransformerBase:
        """The model, in float64 and evaluation mode; maps are enlarged so that attention is far from uniform."""
        torch.manual_seed(self.seed if seed is None else seed)
        words = dictionary()
        task = Namespace(source_dictionary=words, target_dictionary=words)
        return _sharpen(SynthTransformerBase.build_model(self.config(), task)).double().eval()

    def attention(self, right_padded: bool = False) -> SynthAttention:
        """The first layer's attention, on its own."""
        torch.manual_seed(self.seed)
        cfg = nested_config(self.config())
        side, kind = ("decoder", "encoder_attn") if self.side == "cross" else (self.side, "self_attn")
        attention = build_attention(cfg, side, kind, 0, cfg.attentions[self.side][0])
        attention.right_padded = right_padded and self.side != "cross"
        return _sharpen(attention).double().eval()


_SIZES: Dict[str, int] = {
    "layers": 2,
    "embed_dim": EMBED_DIM,
    "ffn_embed_dim": 24,
    "attention_heads": HEADS,
}


def _sharpen(module: Any) -> Any:
    """Redraw the scorers' parameters and fixed maps at unit scale: near zero, wrong positions would not show."""
    generator = torch.Generator().manual_seed(5)
    for attention in (m for m in module.modules() if isinstance(m, SynthAttention)):
        for tensor in list(attention.scorer.parameters()) + list(attention.scorer.buffers()):
            scale = 1.0 if tensor.dim() == 3 else 0.5
            with torch.no_grad():
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
        if attention.span is not None:
            with torch.no_grad():
                attention.span.span_ratio.copy_(torch.rand(attention.num_heads, generator=generator))
    return module


def tokens(lengths: Tuple[int, ...] = LENGTHS, pad_left: bool = False, seed: int = 3, pad: int = 1) -> Tensor:
    """B x S token batch of the given lengths, padded on one side. The same sentences on either side."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.full((len(lengths), max(lengths)), pad)
    for row, length in enumerate(lengths):
        sentence = torch.randint(4, 24, (length,), generator=generator)
        start = max(lengths) - length if pad_left else 0
        batch[row, start : start + length] = sentence
    return batch


def states(steps: int, batch: int, dim: int = EMBED_DIM, seed: int = 4) -> Tensor:
    """T x B x C inputs of an attention, float64."""
    return torch.randn(steps, batch, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shift_left_padding(x: Tensor, lengths: Tuple[int, ...] = LENGTHS) -> Tensor:
    """Right-padded S x B x C -> left-padded."""
    steps = x.size(0)
    return torch.stack([torch.roll(x[:, b], steps - n, dims=0) for b, n in enumerate(lengths)], dim=1)


def padding_mask(lengths: Tuple[int, ...] = LENGTHS, left: bool = False) -> Tensor:
    """B x S, True at pads."""
    slots = torch.arange(max(lengths))
    rows = [slots < max(lengths) - n if left else slots >= n for n in lengths]
    return torch.stack(rows)
