"""From the configuration to the attention of one layer."""

import hashlib

from torch import nn

from fairseq_synth.models.config import SynthTransformerConfig
from fairseq_synth.models.validation import parse_factors
from fairseq_synth.modules.adaptive_span import AdaptiveSpan
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.linear import use_faster_linear
from fairseq_synth.modules.persistent_memory import PersistentMemory
from fairseq_synth.modules.scorers import ScorerConfig
from fairseq_synth.modules.spec import LayerSpec, build_layer


def build_attention(cfg: SynthTransformerConfig, side: str, kind: str, layer: int, names: LayerSpec) -> SynthAttention:
    """The attention of one layer. side: encoder or decoder; kind: self_attn or encoder_attn."""
    section, options = getattr(cfg, side), cfg.synthesizer
    place = f"{side}.layers.{layer}.{kind}"
    scorer_config = ScorerConfig(
        embed_dim=section.embed_dim,
        num_heads=section.attention_heads,
        max_length=options.max_length,
        rank=options.rank,
        init=str(options.init),
        factors=parse_factors(options.factors),
        share_output=options.share_output,
        map_seed=place_seed(options.map_seed, place),
        attention_dim=section.attention_dim,
    )
    cross = kind == "encoder_attn"
    heads, span = section.attention_heads, 0 if cross else section.adaptive_span
    memory = 0 if cross else cfg.persistent_memory
    attention = SynthAttention(
        section.embed_dim,
        section.attention_heads,
        build_layer(names, scorer_config),
        dropout=cfg.attention_dropout,
        causal=side == "decoder" and not cross,
        cross_attention=cross,
        kdim=cfg.encoder.embed_dim if cross else None,
        right_padded=not cross,
        q_noise=cfg.quant_noise.pq,
        qn_block_size=cfg.quant_noise.pq_block_size,
        span=AdaptiveSpan(heads, span, cfg.span_ramp) if span else None,
        memory=PersistentMemory(heads, memory, scorer_config.head_dim) if memory else None,
        attention_dim=section.attention_dim,
    )
    speed_up(attention, cfg)
    return attention


def place_seed(seed: int, place: str) -> int:
    """A seed of its own for every attention, independent of how many others there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{place}".encode()).digest()[:7], "big")


def speed_up(module: nn.Module, cfg: SynthTransformerConfig) -> None:
    """Products by the faster library, where that changes nothing else."""
    if not cfg.quant_noise.scalar:  # which looks for nn.Linear itself
        use_faster_linear(module)
