"""fairseq's Transformer decoder with the attention that the config names for each layer."""

from typing import Any, Dict, List, Optional

import torch
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import Tensor, nn

from fairseq_synth.decoding.cross_attention import CrossAttention
from fairseq_synth.decoding.step import can_step, once_per_sentence
from fairseq_synth.models import limits
from fairseq_synth.models.base import limited_positions
from fairseq_synth.models.build_attention import build_attention, speed_up
from fairseq_synth.models.config import ResolvedConfig
from fairseq_synth.models.layers import drop_feed_forward, wrap
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.incremental_state import STATEFUL, STEP
from fairseq_synth.modules.positions import gather_slots, padding_layout
from fairseq_synth.modules.scorers.spec import LayerSpec


class SynthDecoderLayer(TransformerDecoderLayerBase):
    """fairseq's decoder layer around :class:`SynthAttention`, for itself and, if asked, for the encoder."""

    def __init__(self, cfg: ResolvedConfig, layer: int, spec: LayerSpec, cross: Optional[LayerSpec]):
        self._place, self._cross = (layer, spec), cross
        super().__init__(cfg, no_encoder_attn=cross is None)
        if cfg.persistent_memory and not cfg.keep_feed_forward:
            drop_feed_forward(self)
        self._unread_norm = self.normalize_before and cross is not None and not reads_queries(self.encoder_attn)
        if self._unread_norm:  # before the attention, it would normalise queries that nobody reads, and never train
            self.encoder_attn_layer_norm = nn.Identity()

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        if self._unread_norm:  # checkpoints of version 0.1 have it
            for name in ("weight", "bias"):
                state_dict.pop(f"{prefix}encoder_attn_layer_norm.{name}", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def build_self_attention(
        self,
        embed_dim: int,
        cfg: ResolvedConfig,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
    ) -> nn.Module:
        if has_stock_attention(cfg):
            return super().build_self_attention(embed_dim, cfg, add_bias_kv, add_zero_attn)
        return build_attention(cfg, "decoder", "self_attn", *self._place)

    def build_encoder_attention(self, embed_dim: int, cfg: ResolvedConfig) -> nn.Module:
        if self._cross is not None and not (self._cross.is_dot_product and not cfg.decoder.attention_dim):
            return build_attention(cfg, "decoder", "encoder_attn", self._place[0], self._cross)
        if cfg.encoder.xformers_att_config is not None:
            return super().build_encoder_attention(embed_dim, cfg)
        return CrossAttention(  # with the arguments that fairseq gives its own
            embed_dim,
            cfg.decoder.attention_heads,
            kdim=cfg.encoder.embed_dim,
            vdim=cfg.encoder.embed_dim,
            dropout=cfg.attention_dropout,
            encoder_decoder_attention=True,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )


def reads_queries(attention: nn.Module) -> bool:
    """Whether an attention to the encoder depends on what the decoder says."""
    if not isinstance(attention, SynthAttention):
        return True
    return attention.scorer.depends_on == "tokens" or attention.q_proj is not None


def has_stock_attention(cfg: ResolvedConfig) -> bool:
    """Whether decoder self-attention is fairseq's own, which options of fairseq's ask for."""
    return cfg.cross_self_attention or cfg.decoder.xformers_att_config is not None


class SynthDecoder(TransformerDecoderBase):
    """As SynthEncoder, for --left-pad-target; cached decoding goes slot by slot, as in fairseq."""

    def __init__(self, cfg, dictionary, embed_tokens, no_encoder_attn: bool = False, output_projection=None):
        if cfg.adaptive_softmax_cutoff is not None:
            limits.cutoffs_below("adaptive_softmax_cutoff", cfg.adaptive_softmax_cutoff, len(dictionary))
        cross = [None] * cfg.decoder.layers if no_encoder_attn else cfg.attentions["cross"]
        self._specs = enumerate(zip(cfg.attentions["decoder"], cross))
        self._needs_future_mask = has_stock_attention(cfg)
        self._pads_between = False  # of the batch that is being read
        self._short_steps = True
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn, output_projection)
        speed_up(self, cfg)

    @property
    def short_steps(self) -> bool:
        """Whether a step of a search may go by fewer operations, and hypotheses share what they know of their sentence.

        False takes fairseq's general way: for those who change modules in the middle of a search, and for comparison.
        """
        return self._short_steps

    @short_steps.setter
    def short_steps(self, wanted: bool) -> None:
        self._short_steps = wanted
        for module in self.layers.modules():
            if isinstance(module, CrossAttention):
                module.short_steps = wanted

    def build_decoder_layer(self, cfg: ResolvedConfig, no_encoder_attn: bool = False) -> nn.Module:
        layer, (spec, cross) = next(self._specs)
        return wrap(SynthDecoderLayer(cfg, layer, spec, cross), cfg)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict[str, List[Tensor]]] = None,
        incremental_state: Optional[Dict[str, Any]] = None,
        features_only: bool = False,
        **options: Any,
    ):
        """As fairseq's."""
        x, extra = super().forward(prev_output_tokens, encoder_out, incremental_state, True, **options)
        if features_only:
            return x, extra
        step = None if incremental_state is None else incremental_state.get(STEP)
        return (self.output_layer if step is None or torch.is_grad_enabled() else step.output)(x), extra

    def extract_features_scriptable(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict[str, List[Tensor]]],
        incremental_state: Optional[Dict[str, Any]] = None,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
    ):
        """As fairseq's. Raises ValueError for ``full_context_alignment``, which a causal module cannot do."""
        if full_context_alignment:
            raise ValueError(
                "full_context_alignment=True: synth_* decoders are causal; use fairseq's transformer_align"
            )
        if incremental_state is None:
            return self._read_batch(prev_output_tokens, encoder_out, alignment_layer, alignment_heads)
        if alignment_layer is alignment_heads is None and can_step(self, prev_output_tokens, incremental_state):
            return incremental_state[STEP](prev_output_tokens, encoder_out, incremental_state)
        encoder_out = once_per_sentence(self, encoder_out, incremental_state)
        return super().extract_features_scriptable(
            prev_output_tokens, encoder_out, incremental_state, False, alignment_layer, alignment_heads
        )

    def _read_batch(self, tokens: Tensor, encoder_out: Any, layer: Optional[int], heads: Optional[int]):
        """Whole sentences. Pads before a sentence move behind it. Those between its tokens keep their place: the slots
        that fairseq pads there (--left-pad-target with --num-batch-buckets) predict the word behind them."""
        layout = padding_layout(tokens.eq(self.padding_idx))
        order = None if layout.between else layout.order
        if order is not None:
            tokens = tokens.gather(1, order)
        self._pads_between = layout.between
        x, extra = super().extract_features_scriptable(tokens, encoder_out, None, False, layer, heads)
        if order is not None:
            back = torch.argsort(order, dim=1)
            x = gather_slots(x, back)
            extra["attn"] = [None if a is None else gather_slots(a, back) for a in extra["attn"]]
            extra["inner_states"] = [gather_slots(s, back, 1) for s in extra["inner_states"]]
        return x, extra

    def buffered_future_mask(self, tensor: Tensor) -> Optional[Tensor]:
        """T x T, which fairseq makes on the CPU; None where no layer reads it. To a SynthAttention it says that pads
        may stand anywhere."""
        if self._needs_future_mask or self._pads_between:
            return super().buffered_future_mask(tensor)
        return None

    def reorder_incremental_state_scripting(self, incremental_state: Dict[str, Any], new_order: Tensor) -> None:
        """As fairseq's, which looks for what has a state among all modules before every step of a beam search."""
        stateful = incremental_state.get(STATEFUL)
        if stateful is None:
            stateful = [m for m in self.layers.modules() if hasattr(m, "reorder_incremental_state")]
            incremental_state[STATEFUL] = stateful
        for module in stateful:
            module.reorder_incremental_state(incremental_state, new_order)

    def max_positions(self) -> int:
        return limited_positions(super().max_positions(), self.layers)
