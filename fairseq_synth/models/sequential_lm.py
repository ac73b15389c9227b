"""``--arch adaptive_span_lm*`` and ``all_attention_lm*``: language models that read a text block after block.

Sukhbaatar et al. 2019: "Adaptive Attention Span in Transformers" (arXiv 1905.07799) and "Augmenting Self-attention
with Persistent Memory" (arXiv 1907.01470). Use with ``--task streaming_lm``; with ``language_modeling`` every block
or sentence stands alone.

Legend: B batch, T block, t remembered positions, H heads, D head dim, C model dim, S maximum span.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Type

from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqLanguageModel

from fairseq_synth.freezing.options import FreezingOptions
from fairseq_synth.models.base import SynthModel, finish_model
from fairseq_synth.models.options import SpanOptions
from fairseq_synth.models.presets import register_presets
from fairseq_synth.models.sequential_decoder import SequentialDecoder

# generation reads one token at a time and may go on for ever
GENERATION_LIMIT = 1_000_000


@dataclass
class SequentialLMConfig(FreezingOptions, SpanOptions):
    layers: int = field(default=12, metadata={"help": "number of layers"})
    embed_dim: int = field(default=512, metadata={"help": "model dimension"})
    ffn_embed_dim: int = field(
        default=2048, metadata={"help": "inner dimension of the feed-forward sublayers; 0 leaves them out"}
    )
    attention_heads: int = field(default=8, metadata={"help": "attention heads"})
    attention_dim: int = field(
        default=0, metadata={"help": "width of queries, keys and values, all heads together (0: --embed-dim)"}
    )
    attention_span: int = field(default=8192, metadata={"help": "S: the longest span, in tokens"})
    initial_span: float = field(default=0.0, metadata={"help": "span of every head at the start, in tokens"})
    fixed_span: bool = field(default=False, metadata={"help": "spans stay at --initial-span"})
    dropout: float = field(default=0.3, metadata={"help": "dropout on attention weights and after the ReLU"})
    embedding_dropout: float = field(default=0.0, metadata={"help": "dropout on the embeddings and the last states"})
    adaptive_cutoff: Optional[str] = field(
        default=None, metadata={"help": "frequency bands of tied adaptive input and softmax: 20000,40000,200000"}
    )
    adaptive_factor: float = field(default=4.0, metadata={"help": "each band's embeddings are this much smaller"})


class SequentialLMBase(SynthModel, FairseqLanguageModel):
    """Post-norm Transformer with SpanAttention. The span loss joins whatever criterion trains it."""

    defaults: Type[FairseqDataclass] = SequentialLMConfig

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "SequentialLMBase":
        """Raises UsageError for options that cannot work."""
        return finish_model(cls(SequentialDecoder(cfg, task.target_dictionary)), cfg)

    def max_decoder_positions(self) -> int:
        return GENERATION_LIMIT


def _published(layers: int, embed_dim: int, ffn_embed_dim: int, dropout: float) -> Dict[str, Any]:
    return {"layers": layers, "embed_dim": embed_dim, "ffn_embed_dim": ffn_embed_dim, "dropout": dropout}


def _all_attention(layers: int, memory: int, dropout: float, span_loss: float) -> Dict[str, Any]:
    return {"layers": layers, "persistent_memory": memory, "dropout": dropout, "span_loss": span_loss}


# Published with Adagrad (lr 0.07, --adagrad-clip 0.03), 32,000 warm-up updates (enwik8_small: 8,000), then constant;
# 64 streams of blocks of 512 tokens (enwik8_small: 256). wiki103: Adam (lr 2.5e-4, 8,000 warm-up updates, clip-norm
# 1), blocks of 256, --criterion adaptive_loss (which fairseq wants with --ddp-backend legacy_ddp). The large and the
# all-attention models end with 10k to 50k updates at a tenth of the learning rate.
PRESETS: Dict[str, Dict[str, Any]] = {
    "adaptive_span_lm": {},
    "adaptive_span_lm_enwik8_small": {
        **_published(8, 256, 1024, 0.0),
        "attention_heads": 4,
        "attention_span": 1024,
        "span_loss": 2e-6,
    },
    "adaptive_span_lm_enwik8": _published(12, 512, 2048, 0.3),
    "adaptive_span_lm_enwik8_large": _published(24, 768, 4096, 0.4),
    "adaptive_span_lm_text8": _published(12, 512, 2048, 0.3),
    "adaptive_span_lm_text8_large": _published(24, 768, 4096, 0.4),
    "all_attention_lm_enwik8_small": _all_attention(18, 1024, 0.3, 1e-7),
    "all_attention_lm_enwik8": _all_attention(36, 2048, 0.4, 1e-7),
    "all_attention_lm_wiki103": {
        **_all_attention(36, 2048, 0.3, 5e-7),
        "attention_span": 2048,
        "embedding_dropout": 0.1,
        "adaptive_cutoff": "20000,40000,200000",
    },
}

register_presets(SequentialLMBase, PRESETS)
