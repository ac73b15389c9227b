"""The layers of the sequential language models, and the decoder that carries memory from block to block.

Legend: B batch, T block, t remembered positions, D head dim, C model dim, S maximum span, V vocabulary.
"""

import hashlib
import math
from typing import Any, Dict, List, Optional, Tuple

import torch
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import AdaptiveInput, AdaptiveSoftmax
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.models import limits
from fairseq_synth.models.sequential_validation import check_options
from fairseq_synth.modules.adaptive_span import AdaptiveSpan
from fairseq_synth.modules.incremental_state import READ, SEEN
from fairseq_synth.modules.initial import Rule, fill
from fairseq_synth.modules.persistent_memory import PersistentMemory
from fairseq_synth.modules.span_attention import SpanAttention
from fairseq_synth.modules.stream_memory import Remembered, StreamMemory

# remembered beyond the longest span of a layer: spans may grow before the next block
GROWTH = 64


class UnscaledEmbedding(nn.Embedding):
    """Embeddings that are used as they are, not multiplied by sqrt(C).

    They start with std C^-0.5, as fairseq draws embeddings; the authors' N(0, 1) learns more slowly at first.
    """

    def __init__(self, size: int, embed_dim: int, padding_idx: int) -> None:
        super().__init__(size, embed_dim, padding_idx)
        nn.init.normal_(self.weight, mean=0, std=embed_dim**-0.5)
        nn.init.constant_(self.weight[padding_idx], 0)

    def rule(self, name: str) -> Rule:
        """How --frozen-init draws them: rows of the length that scaled ones have."""
        return Rule("uniform", math.sqrt(3.0), self.padding_idx)


class SequentialLayer(nn.Module):
    """h = LN(x + attention); h = LN(h + feed-forward), the second part only where there is one."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        size, heads = cfg.embed_dim, cfg.attention_heads
        span = AdaptiveSpan(heads, cfg.attention_span, cfg.span_ramp, cfg.initial_span, cfg.fixed_span)
        inner = cfg.attention_dim or size
        memory = PersistentMemory(heads, cfg.persistent_memory, inner // heads) if cfg.persistent_memory else None
        self.self_attn = SpanAttention(size, heads, span, cfg.dropout, memory, inner)
        self.self_attn_layer_norm = nn.LayerNorm(size)
        self.feed_forward: Optional[nn.Module] = None
        if has_feed_forward(cfg):
            wide, narrow = nn.Linear(size, cfg.ffn_embed_dim), nn.Linear(cfg.ffn_embed_dim, size)
            self.feed_forward = nn.Sequential(wide, nn.ReLU(), nn.Dropout(cfg.dropout), narrow)
            self.final_layer_norm = nn.LayerNorm(size)

    @property
    def reach(self) -> int:
        """How many past positions the farthest-looking head can use."""
        return self.self_attn.reach

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        past: Optional[Tensor] = None,
        pads: Optional[Tensor] = None,
        incremental_state: Optional[Dict[str, Any]] = None,
    ) -> Tensor:
        """Arguments as in SpanAttention. Returns T x B x C."""
        x = self.self_attn_layer_norm(x + self.self_attn(x, positions, past, pads, incremental_state))
        return x if self.feed_forward is None else self.final_layer_norm(x + self.feed_forward(x))


class SequentialDecoder(FairseqIncrementalDecoder):
    """Embeddings, layers and output of a sequential language model.

    Three ways to give context: ``memory`` (blocks of parallel streams, for training and evaluation),
    ``incremental_state`` (generation), or none (every block stands alone).

    Decoding state, beside that of the layers: ``seen``, B x 1, the number of tokens already read.

    Raises:
        UsageError: options that leave nothing to compute, or that do not fit together.
    """

    vocabulary: Tensor  # fingerprint of the dictionary

    def __init__(self, cfg: Any, dictionary: Any) -> None:
        super().__init__(dictionary)
        check_options(cfg)
        self.padding_idx, self.max_span = dictionary.pad(), cfg.attention_span
        self.register_buffer("vocabulary", _fingerprint(dictionary))
        self.adaptive_softmax: Optional[nn.Module] = None
        if cfg.adaptive_cutoff:
            self._build_adaptive(cfg, len(dictionary))
        else:
            self.embed_tokens: nn.Module = UnscaledEmbedding(len(dictionary), cfg.embed_dim, self.padding_idx)
            self.output_projection = nn.Linear(cfg.embed_dim, len(dictionary))
        self.embedding_scale = math.sqrt(cfg.embed_dim) if cfg.adaptive_cutoff else 1.0
        self.embedding_dropout = nn.Dropout(cfg.embedding_dropout)
        # one vector per distance, shared by all heads and layers
        self.positions = nn.Parameter(
            torch.empty(cfg.attention_span, (cfg.attention_dim or cfg.embed_dim) // cfg.attention_heads)
        )
        fill(self.positions, Rule("normal", 1.0))
        self.layers = nn.ModuleList(SequentialLayer(cfg) for _ in range(cfg.layers))

    def rule(self, name: str) -> Optional[Rule]:
        """How --frozen-init draws what is particular to this model."""
        return Rule("normal", 1.0) if name == "positions" else None

    def _build_adaptive(self, cfg: Any, vocabulary: int) -> None:
        """Tied adaptive input and softmax, as published for WikiText-103."""
        limits.cutoffs_below("adaptive_cutoff", cfg.adaptive_cutoff, vocabulary)
        cutoff = limits.rising_cutoffs("adaptive_cutoff", cfg.adaptive_cutoff)
        size, factor = cfg.embed_dim, cfg.adaptive_factor
        self.embed_tokens = AdaptiveInput(vocabulary, self.padding_idx, size, factor, size, cutoff)
        self.adaptive_softmax = AdaptiveSoftmax(
            vocabulary, size, cutoff, dropout=0.0, factor=factor, adaptive_inputs=self.embed_tokens, tie_proj=True
        )

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[Dict[str, Any]] = None,
        src_lengths: Optional[Tensor] = None,
        memory: Optional[StreamMemory] = None,
        features_only: bool = False,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """
        Args:
            prev_output_tokens: B x T; in incremental decoding all tokens so far.
            encoder_out, src_lengths: not used (fairseq passes them).
            memory: what was read before this block; updated.

        Returns:
            logits B x T x V (B x T x C if features_only or with an adaptive softmax), and a dict of the
            inner_states per layer (attn: [None], which fairseq's generator asks for)
        """
        tokens = self._new_tokens(prev_output_tokens, incremental_state)
        past = self._recall(tokens, memory)
        pads = _join_pads(past, tokens.eq(self.padding_idx))
        x = self.embedding_dropout(self.embed_tokens(tokens) * self.embedding_scale).transpose(0, 1)
        positions = self.positions[: max(self._reaches())]
        states = [x]
        for i, layer in enumerate(self.layers):
            before = None if past is None else past.states[i]
            x = layer(x, positions, before, pads, incremental_state)
            states.append(x)
        if memory is not None:
            self._remember(memory, past, states, pads)
        x = self.embedding_dropout(x).transpose(0, 1)
        return x if features_only else self.output_layer(x), {"attn": [None], "inner_states": states}

    def output_layer(self, features: Tensor) -> Tensor:
        return features if self.adaptive_softmax is not None else self.output_projection(features)

    def max_positions(self) -> int:
        return self.max_span

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuses another dictionary: of equal size, it would fit and give nonsense."""
        theirs: Tensor = state_dict.setdefault(prefix + "vocabulary", self.vocabulary)
        if not torch.equal(theirs.cpu(), self.vocabulary.cpu()):
            raise UsageError(
                f"the dictionary (dict.txt) of {len(self.dictionary)} symbols is not the one the checkpoint was "
                f"trained with: give the data folder of the training, or binarise this text with its "
                f"dictionary (fairseq-preprocess --srcdict)"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _reaches(self) -> List[int]:
        return [layer.reach for layer in self.layers if isinstance(layer, SequentialLayer)]

    # ------------------------------------------------------------------ what was read before
    def _new_tokens(self, tokens: Tensor, incremental_state: Optional[Dict[str, Any]]) -> Tensor:
        if incremental_state is None:
            if tokens.size(1) > self.max_span:
                raise UsageError(
                    f"a block of {tokens.size(1)} tokens is longer than the {self.max_span} positions of "
                    f"--attention-span: lower --tokens-per-sample, or train with a longer span"
                )
            return tokens
        state = self.get_incremental_state(incremental_state, READ)
        seen = int(state[SEEN][0]) if state else 0
        new = {SEEN: tokens.new_full((tokens.size(0), 1), tokens.size(1))}
        self.set_incremental_state(incremental_state, READ, new)
        return tokens[:, seen:]

    def reorder_incremental_state(self, incremental_state: Dict[str, Any], new_order: Tensor) -> None:
        super().reorder_incremental_state(incremental_state, new_order)
        state = self.get_incremental_state(incremental_state, READ)
        if state:
            self.set_incremental_state(incremental_state, READ, {SEEN: state[SEEN].index_select(0, new_order)})

    def _recall(self, tokens: Tensor, memory: Optional[StreamMemory]) -> Optional[Remembered]:
        past = None if memory is None else memory.read(self._incremental_state_id)
        if past is not None and past.states[0].size(1) != tokens.size(0):
            raise UsageError(
                f"a block of {tokens.size(0)} streams follows one of {past.states[0].size(1)}: all blocks of a pass "
                f"must have --batch-size rows; start with a new StreamMemory to change it"
            )
        return past

    def _remember(
        self, memory: StreamMemory, past: Optional[Remembered], states: List[Tensor], pads: Optional[Tensor]
    ) -> None:
        """Keep of every layer's input what the next block can reach, and a little more."""
        sizes = [min(self.max_span, reach + GROWTH) for reach in self._reaches()]
        kept = []
        for i, size in enumerate(sizes):
            new = states[i].detach()
            before = new[:0] if past is None else past.states[i].to(new.dtype)
            kept.append(torch.cat([before[max(0, before.size(0) + new.size(0) - size) :], new])[-size:])
        memory.write(self._incremental_state_id, Remembered(kept, None if pads is None else pads[:, -max(sizes) :]))


def _fingerprint(dictionary: Any) -> Tensor:
    """Of the symbols and their order; 32 bytes."""
    symbols = "\n".join(dictionary[i] for i in range(len(dictionary)))
    return torch.tensor(list(hashlib.sha256(symbols.encode("utf-8")).digest()), dtype=torch.uint8)


def has_feed_forward(cfg: Any) -> bool:
    return cfg.ffn_embed_dim > 0 and (not cfg.persistent_memory or cfg.keep_feed_forward)


def _join_pads(past: Optional[Remembered], pads: Tensor) -> Optional[Tensor]:
    """B x (t + T), True at pads; None where there are none. t is that of the layer that remembers most."""
    if past is None:
        return pads if bool(pads.any()) else None
    before = past.pads
    if before is None:
        if not bool(pads.any()):
            return None
        before = pads.new_zeros(pads.size(0), max(state.size(0) for state in past.states))
    return torch.cat([before, pads], dim=1)
