"""fairseq's Transformer encoder with the attention that the config names for each layer."""

from typing import Any, Dict, List, Optional

import torch
from fairseq.models.transformer import TransformerEncoderBase
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import Tensor, nn

from fairseq_synth.decoding.sentences import number_rows
from fairseq_synth.models.base import limited_positions
from fairseq_synth.models.build_attention import build_attention, speed_up
from fairseq_synth.models.config import ResolvedConfig
from fairseq_synth.models.layers import drop_feed_forward, wrap
from fairseq_synth.modules.incremental_state import SENTENCES
from fairseq_synth.modules.positions import gather_slots, padding_layout
from fairseq_synth.modules.scorers.spec import LayerSpec

# fairseq 0.12.2 keeps a second copy of every encoder weight for torch's fused kernel; main dropped it
FUSED_COPIES = tuple(f"{m}_{p}" for m in ("in_proj", "out_proj", "fc1", "fc2") for p in ("weight", "bias"))


class SynthEncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer around a :class:`SynthAttention`, on 0.12.2 and on main."""

    def __init__(self, cfg: ResolvedConfig, layer: int, spec: LayerSpec, return_fc: bool = False):
        self._place, self._borrowed = (layer, spec), False
        super().__init__(cfg, return_fc)
        self._drop_fused_path(cfg)
        if cfg.persistent_memory and not cfg.keep_feed_forward:
            drop_feed_forward(self)

    def build_self_attention(self, embed_dim: int, cfg: ResolvedConfig) -> nn.Module:
        if cfg.encoder.xformers_att_config is not None:
            return super().build_self_attention(embed_dim, cfg)
        attention = build_attention(cfg, "encoder", "self_attn", *self._place)
        self._borrowed = attention.q_proj is None
        if self._borrowed:
            attention.q_proj = attention.v_proj  # 0.12.2's constructor reads its shape; gone again below
        return attention

    def _drop_fused_path(self, cfg: ResolvedConfig) -> None:
        if self._borrowed:
            self.self_attn.q_proj = None
        for name in FUSED_COPIES:
            self._parameters.pop(name, None)
        # what 0.12.2's encoder asks of its first layer; unused on main
        self.load_to_BT, self.can_use_fastpath, self.ever_training = False, False, True
        self.cfg_checkpoint_activations = bool(cfg.checkpoint_activations)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        for name in FUSED_COPIES:  # a checkpoint of fairseq 0.12.2's own transformer
            state_dict.pop(prefix + name, None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)  # 0.12.2's override needs q_proj


class SynthEncoder(TransformerEncoderBase):
    """Turns every batch to right padding at its door and back at its exit: scorers index token positions."""

    def __init__(self, cfg, dictionary, embed_tokens, return_fc: bool = False):
        self._specs = enumerate(cfg.attentions["encoder"])
        super().__init__(cfg, dictionary, embed_tokens, return_fc)
        speed_up(self, cfg)

    def build_encoder_layer(self, cfg: ResolvedConfig) -> nn.Module:
        layer, spec = next(self._specs)  # fairseq builds the layers from the bottom, without their number
        return wrap(SynthEncoderLayer(cfg, layer, spec, self.return_fc), cfg)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        return_all_hiddens: bool = False,
        token_embeddings: Optional[Tensor] = None,
    ) -> Dict[str, List[Tensor]]:
        """As fairseq's; outputs stand where the caller's tokens stood."""
        order = padding_layout(src_tokens.eq(self.padding_idx)).order
        if order is None:
            out = super().forward(src_tokens, src_lengths, return_all_hiddens, token_embeddings)
            return number_rows(out, src_tokens.size(0), src_tokens.device)
        if token_embeddings is not None:
            token_embeddings = gather_slots(token_embeddings, order)
        out = super().forward(src_tokens.gather(1, order), src_lengths, return_all_hiddens, token_embeddings)
        back = torch.argsort(order, dim=1)
        for name in ("encoder_padding_mask", "encoder_embedding"):
            out[name] = [gather_slots(t, back) for t in out[name]]
        for name in ("encoder_out", "encoder_states", "fc_results"):
            out[name] = [None if t is None else gather_slots(t, back, 1) for t in out.get(name, [])]
        return number_rows(out, src_tokens.size(0), src_tokens.device)

    def reorder_encoder_out(self, encoder_out: Dict[str, List[Tensor]], new_order: Tensor) -> Dict[str, List[Tensor]]:
        """As fairseq's; nothing to do where every row keeps its sentence."""
        sentences = [rows.index_select(0, new_order) for rows in encoder_out.get(SENTENCES, [])]
        if sentences and torch.equal(sentences[0], encoder_out[SENTENCES][0]):
            return encoder_out
        return {**super().reorder_encoder_out(encoder_out, new_order), SENTENCES: sentences}

    def max_positions(self) -> int:
        return limited_positions(super().max_positions(), self.layers)
