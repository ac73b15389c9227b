"""Encoder and decoder of fairseq's Transformer with the attention that the config names for each layer."""

from typing import Any, Dict, List, Optional

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase
from fairseq.modules import MultiheadAttention
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from fairseq_synth.models.config import SynthTransformerConfig
from fairseq_synth.models.decoding_step import STEP, can_step, once_per_sentence
from fairseq_synth.models.layer_attention import build_attention, speed_up
from fairseq_synth.models.validation import layer_specs
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.cross_attention import CrossAttention
from fairseq_synth.modules.hypotheses import SENTENCES, number_rows
from fairseq_synth.modules.positions import right_padding_order
from fairseq_synth.modules.spec import LayerSpec
from fairseq_synth.seeded.on_the_fly import let_go

# fairseq 0.12.2 keeps a second copy of every encoder weight for torch's fused kernel; main dropped it
FUSED_COPIES = tuple(f"{m}_{p}" for m in ("in_proj", "out_proj", "fc1", "fc2") for p in ("weight", "bias"))


class _Nothing(nn.Module):
    """Stands where a feed-forward sublayer was: the residual passes it unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def drop_feed_forward(layer: nn.Module) -> None:
    """All-attention layers have none: the layer ends with the norm after its last attention."""
    layer.fc1, layer.fc2, layer.final_layer_norm = nn.Identity(), _Nothing(), nn.Identity()


class SynthEncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer around a :class:`SynthAttention`, on 0.12.2 and on main."""

    def __init__(self, cfg: SynthTransformerConfig, layer: int, names: LayerSpec, return_fc: bool = False):
        self._place, self._borrowed = (layer, names), False
        super().__init__(cfg, return_fc)
        self._drop_fused_path(cfg)
        if cfg.persistent_memory and not cfg.keep_feed_forward:
            drop_feed_forward(self)

    def build_self_attention(self, embed_dim: int, cfg: SynthTransformerConfig) -> nn.Module:
        if cfg.encoder.xformers_att_config is not None:
            return super().build_self_attention(embed_dim, cfg)
        attention = build_attention(cfg, "encoder", "self_attn", *self._place)
        self._borrowed = not hasattr(attention, "q_proj")
        if self._borrowed:
            attention.q_proj = attention.v_proj  # 0.12.2's constructor reads its shape; gone again below
        return attention

    def _drop_fused_path(self, cfg: SynthTransformerConfig) -> None:
        if self._borrowed:
            del self.self_attn.q_proj
        for name in FUSED_COPIES:
            self._parameters.pop(name, None)
        # what 0.12.2's encoder asks of its first layer; unused on main
        self.load_to_BT, self.can_use_fastpath, self.ever_training = False, False, True
        self.cfg_checkpoint_activations = bool(cfg.checkpoint_activations)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        for name in FUSED_COPIES:  # a checkpoint of fairseq 0.12.2's own transformer
            state_dict.pop(prefix + name, None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)  # 0.12.2's override needs q_proj


class SynthDecoderLayer(TransformerDecoderLayerBase):
    """fairseq's decoder layer around :class:`SynthAttention`, for itself and, if asked, for the encoder."""

    def __init__(
        self,
        cfg: SynthTransformerConfig,
        layer: int,
        names: LayerSpec,
        cross_names: Optional[LayerSpec],
    ):
        self._place, self._cross_place = (layer, names), (layer, cross_names)
        super().__init__(cfg, no_encoder_attn=cross_names is None)
        if cfg.persistent_memory and not cfg.keep_feed_forward:
            drop_feed_forward(self)

    def build_self_attention(
        self,
        embed_dim: int,
        cfg: SynthTransformerConfig,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
    ) -> nn.Module:
        if cfg.cross_self_attention or cfg.decoder.xformers_att_config is not None:
            return super().build_self_attention(embed_dim, cfg, add_bias_kv, add_zero_attn)
        return build_attention(cfg, "decoder", "self_attn", *self._place)

    def build_encoder_attention(self, embed_dim: int, cfg: SynthTransformerConfig) -> nn.Module:
        layer, names = self._cross_place
        if names is None or (names == ("dot_product",) and not cfg.decoder.attention_dim):
            attention = super().build_encoder_attention(embed_dim, cfg)
            if type(attention) is MultiheadAttention:
                attention.__class__ = CrossAttention
            return attention
        return build_attention(cfg, "decoder", "encoder_attn", layer, names)


def wrap(layer: nn.Module, cfg: SynthTransformerConfig) -> nn.Module:
    """What fairseq does to a layer it has built: --checkpoint-activations and fully sharded training."""
    if cfg.frozen_on_the_fly:
        let_go(layer)
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


def _limit(stock: int, layers: nn.ModuleList) -> int:
    """max_positions(): the smallest of fairseq's limit and every scorer's maximum length."""
    attentions = [m for m in layers.modules() if isinstance(m, SynthAttention)]
    return min([stock] + [a.max_length for a in attentions if a.max_length is not None])


class SynthEncoder(TransformerEncoderBase):
    """Turns every batch to right padding at its door and back at its exit: scorers index token positions."""

    def __init__(self, cfg, dictionary, embed_tokens, return_fc: bool = False):
        self._specs = list(enumerate(layer_specs(cfg, "encoder")))[::-1]
        super().__init__(cfg, dictionary, embed_tokens, return_fc)
        speed_up(self, cfg)

    def build_encoder_layer(self, cfg: SynthTransformerConfig) -> nn.Module:
        layer, names = self._specs.pop()  # fairseq builds the layers from the bottom, without their number
        return wrap(SynthEncoderLayer(cfg, layer, names, self.return_fc), cfg)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        return_all_hiddens: bool = False,
        token_embeddings: Optional[Tensor] = None,
    ) -> Dict[str, List[Tensor]]:
        """As fairseq's; outputs stand where the caller's tokens stood."""
        order = right_padding_order(src_tokens.eq(self.padding_idx))
        if order is None:
            out = super().forward(src_tokens, src_lengths, return_all_hiddens, token_embeddings)
            return number_rows(out, src_tokens.size(0), src_tokens.device)
        if token_embeddings is not None:
            token_embeddings = _gather_slots(token_embeddings, order)
        out = super().forward(src_tokens.gather(1, order), src_lengths, return_all_hiddens, token_embeddings)
        back = torch.argsort(order, dim=1)
        for name in ("encoder_padding_mask", "encoder_embedding"):
            out[name] = [_gather_slots(t, back) for t in out[name]]
        for name in ("encoder_out", "encoder_states", "fc_results"):
            out[name] = [None if t is None else _gather_slots(t, back, 1) for t in out.get(name, [])]
        return number_rows(out, src_tokens.size(0), src_tokens.device)

    def reorder_encoder_out(self, encoder_out: Dict[str, List[Tensor]], new_order: Tensor) -> Dict[str, List[Tensor]]:
        """As fairseq's; nothing to do where every row keeps its sentence."""
        sentences = [rows.index_select(0, new_order) for rows in encoder_out.get(SENTENCES, [])]
        if sentences and torch.equal(sentences[0], encoder_out[SENTENCES][0]):
            return encoder_out
        return {**super().reorder_encoder_out(encoder_out, new_order), SENTENCES: sentences}

    def max_positions(self) -> int:
        return _limit(super().max_positions(), self.layers)


class SynthDecoder(TransformerDecoderBase):
    """As :class:`SynthEncoder`, for --left-pad-target; cached decoding goes slot by slot, as in fairseq."""

    def __init__(self, cfg, dictionary, embed_tokens, no_encoder_attn: bool = False, output_projection=None):
        cross = [None] * cfg.decoder.layers if no_encoder_attn else layer_specs(cfg, "cross")
        self._specs = list(enumerate(zip(layer_specs(cfg, "decoder"), cross)))[::-1]
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn, output_projection)
        speed_up(self, cfg)

    def build_decoder_layer(self, cfg: SynthTransformerConfig, no_encoder_attn: bool = False) -> nn.Module:
        layer, (names, cross_names) = self._specs.pop()
        return wrap(SynthDecoderLayer(cfg, layer, names, cross_names), cfg)

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
        order = None
        if incremental_state is not None:
            if alignment_layer is alignment_heads is None and can_step(self, prev_output_tokens, incremental_state):
                return incremental_state[STEP](prev_output_tokens, encoder_out, incremental_state)
            encoder_out = once_per_sentence(self, encoder_out, incremental_state)
        else:
            order = right_padding_order(prev_output_tokens.eq(self.padding_idx))
        if order is not None:
            prev_output_tokens = prev_output_tokens.gather(1, order)
        x, extra = super().extract_features_scriptable(
            prev_output_tokens, encoder_out, incremental_state, False, alignment_layer, alignment_heads
        )
        if order is not None:
            back = torch.argsort(order, dim=1)
            x = _gather_slots(x, back)
            extra["attn"] = [None if a is None else _gather_slots(a, back) for a in extra["attn"]]
            extra["inner_states"] = [_gather_slots(s, back, 1) for s in extra["inner_states"]]
        return x, extra

    def reorder_incremental_state_scripting(self, incremental_state: Dict[str, Any], new_order: Tensor) -> None:
        """As fairseq's, which looks for what has a state among all modules before every step of a beam search."""
        stateful = incremental_state.get(_STATEFUL)
        if stateful is None:
            stateful = [m for m in self.layers.modules() if hasattr(m, "reorder_incremental_state")]
            incremental_state[_STATEFUL] = stateful
        for module in stateful:
            module.reorder_incremental_state(incremental_state, new_order)

    def max_positions(self) -> int:
        return _limit(super().max_positions(), self.layers)


_STATEFUL = "modules with a state"  # key of an incremental state; found anew for every batch


def _gather_slots(x: Tensor, order: Tensor, batch_dim: int = 0) -> Tensor:
    """Reorder the slots of x (B x S (x C), or S x B x C with batch_dim 1) by ``order`` (B x S)."""
    index = order.t() if batch_dim else order
    if x.dim() == 3:
        index = index.unsqueeze(-1).expand(-1, -1, x.size(2))
    return x.gather(1 - batch_dim, index)
