"""From the configuration to the attention of one layer."""

from typing import Any

from torch import nn

from fairseq_synth.modules.adaptive_span import AdaptiveSpan
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.persistent_memory import PersistentMemory
from fairseq_synth.modules.products import use_faster_linear
from fairseq_synth.modules.scorers.base import AttentionConfig
from fairseq_synth.modules.scorers.spec import LayerSpec, build_layer


def build_attention(cfg: Any, side: str, kind: str, layer: int, spec: LayerSpec) -> SynthAttention:
    """The attention of one layer. side: encoder or decoder; kind: self_attn or encoder_attn."""
    section, cross = getattr(cfg, side), kind == "encoder_attn"
    heads, span = section.attention_heads, 0 if cross else section.adaptive_span
    memory = 0 if cross else cfg.persistent_memory
    causal = side == "decoder" and not cross
    place = f"{side}.layers.{layer}.{kind}"
    config = AttentionConfig(section.embed_dim, heads, section.attention_dim or None, place, causal, cross)
    attention = SynthAttention(
        section.embed_dim,
        heads,
        build_layer(spec, config, cfg.synthesizer),
        dropout=cfg.attention_dropout,
        causal=causal,
        cross_attention=cross,
        kdim=cfg.encoder.embed_dim if cross else None,
        right_padded=not cross,
        q_noise=cfg.quant_noise.pq,
        qn_block_size=cfg.quant_noise.pq_block_size,
        span=AdaptiveSpan(heads, span, cfg.span_ramp) if span else None,
        memory=PersistentMemory(heads, memory, config.head_dim) if memory else None,
        attention_dim=section.attention_dim,
    )
    speed_up(attention, cfg)
    return attention


def speed_up(module: nn.Module, cfg: Any) -> None:
    """Products by the faster library, where that changes nothing else."""
    if not cfg.quant_noise.scalar:  # which looks for nn.Linear itself
        use_faster_linear(module)
