"""One decoding step of a whole decoder: its ``extract_features`` for a single new token per row, by fewer operations.

On small models the time of a step goes to the number of operations, not to their size. Here the hidden states are
matrices (B x C), plain modules are called as functions, and what stays the same during a search is made once.
fairseq's general way remains the reference, and does everything that is not plain.

Legend: B rows (hypotheses), S source length, C model dim.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules import FairseqDropout, SinusoidalPositionalEmbedding
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import Tensor

from fairseq_synth.decoding import plain_modules
from fairseq_synth.decoding.cross_attention import CrossAttention, CrossAttentionStep
from fairseq_synth.decoding.self_attention import SelfAttentionStep
from fairseq_synth.decoding.sentences import first_of_each, hypotheses
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.incremental_state import STEP
from fairseq_synth.modules.products import autocast

Features = Tuple[Tensor, Dict[str, List[Optional[Tensor]]]]


def can_step(decoder: Any, tokens: Tensor, incremental_state: Dict[str, Any]) -> bool:
    """Whether the step in the state, made here for the first token, may take the last of ``tokens`` (B x T)."""
    if not decoder.short_steps or torch.is_grad_enabled() or decoder.training:
        return False
    if STEP not in incremental_state:
        incremental_state[STEP] = DecodingStep(decoder, tokens.size(0)) if _is_plain(decoder, tokens.device) else None
    return incremental_state[STEP] is not None and not bool(tokens[:, -1].eq(decoder.padding_idx).any())


def once_per_sentence(decoder: Any, encoder_out: Any, incremental_state: Dict[str, Any]) -> Any:
    """The encoder's output without its copies for every hypothesis, where all layers can share keys and values."""
    attentions: List[Any] = [getattr(layer, "encoder_attn", None) for layer in decoder.layers]
    if (
        not decoder.short_steps
        or encoder_out is None
        or any(type(a) is not CrossAttention or a.beam_size > 1 for a in attentions)
    ):
        return encoder_out
    each = attentions[0].rows_per_sentence(incremental_state) or hypotheses(encoder_out)
    return first_of_each(encoder_out, each) if each > 1 else encoder_out


def _is_plain(decoder: Any, device: torch.device) -> bool:
    """Whether the decoder is of the parts that are repeated here, none of them changed."""
    if decoder.quant_noise is not None or decoder.cross_self_attention or autocast(device):
        return False
    for module in decoder.modules():
        if module.training or (isinstance(module, FairseqDropout) and module.apply_during_inference):
            return False
    return all(_is_plain_layer(layer) for layer in decoder.layers)


def _is_plain_layer(layer: Any) -> bool:
    if type(layer).forward is not TransformerDecoderLayerBase.forward or not plain_modules.is_plain(layer):
        return False
    changed = [layer.c_attn, layer.attn_ln, layer.ffn_layernorm, layer.w_resid]
    return isinstance(layer.self_attn, SynthAttention) and not layer.onnx_trace and changed == [None] * 4


class DecodingStep:
    """Of one decoder during one search; its weights must not change meanwhile."""

    def __init__(self, decoder: Any, rows: int):
        self.decoder = decoder
        self.layers = [LayerStep(layer, rows) for layer in decoder.layers]
        self.begun = False
        # at every step, not only at the first
        self.needs_encoder_out = any(layer.cross_step is None for layer in self.layers)
        self.layer_norm = None if decoder.layer_norm is None else plain_modules.layer_norm(decoder.layer_norm)
        self.output: plain_modules.Function = decoder.output_layer
        if type(decoder).output_layer is TransformerDecoderBase.output_layer and decoder.adaptive_softmax is None:
            self.output = plain_modules.linear(decoder.output_projection, rows)

    def __call__(
        self, tokens: Tensor, encoder_out: Optional[Dict[str, List[Tensor]]], incremental_state: Dict[str, Any]
    ) -> Features:
        """tokens: B x T, the last of them new. Returns features B x 1 x C and what fairseq returns beside them."""
        if self.needs_encoder_out or not self.begun:
            encoder_out = once_per_sentence(self.decoder, encoder_out, incremental_state)
        x = self._embed(tokens, incremental_state)
        self.begun = True
        states: List[Optional[Tensor]] = [x.unsqueeze(0)]
        weights = None
        for layer in self.layers:
            x, weights = layer(x, encoder_out, incremental_state, need_weights=layer is self.layers[-1])
            states.append(x.unsqueeze(0))
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = x.unsqueeze(1)
        if self.decoder.project_out_dim is not None:
            x = self.decoder.project_out_dim(x)
        return x, {"attn": [weights], "inner_states": states}

    def _embed(self, tokens: Tensor, incremental_state: Dict[str, Any]) -> Tensor:
        """B x C."""
        decoder = self.decoder
        x = decoder.embed_scale * decoder.embed_tokens(tokens[:, -1:])
        if decoder.project_in_dim is not None:
            x = decoder.project_in_dim(x)
        if decoder.embed_positions is not None:
            x += self._position(tokens, incremental_state)
        if decoder.layernorm_embedding is not None:
            x = decoder.layernorm_embedding(x)
        return x.squeeze(1)

    def _position(self, tokens: Tensor, incremental_state: Dict[str, Any]) -> Tensor:
        """The embedding of the last position."""
        embed = self.decoder.embed_positions
        if self.begun and type(embed) is SinusoidalPositionalEmbedding:
            row = embed.padding_idx + tokens.size(1)
            if row < embed.weights.size(0):  # a row of a table, which fairseq looks up by a dozen operations
                return embed.weights[row]
        return embed(tokens, incremental_state=incremental_state)


class LayerStep:
    """Of one layer. Dropout is left out: nothing is dropped while decoding."""

    def __init__(self, layer: Any, rows: int):
        self.normalize_before, self.cross, self.cross_step = layer.normalize_before, layer.encoder_attn, None
        self.self_attention = SelfAttentionStep(layer.self_attn, rows)
        self.self_attention_norm = plain_modules.layer_norm(layer.self_attn_layer_norm)
        if self.cross is not None:
            self.cross_norm = plain_modules.layer_norm(layer.encoder_attn_layer_norm)
            if type(self.cross) is CrossAttention and plain_modules.is_plain(self.cross):
                self.cross_step = CrossAttentionStep(self.cross, rows)
        self.fc1, self.fc2 = plain_modules.linear(layer.fc1, rows), plain_modules.linear(layer.fc2, rows)
        self.activation, self.final_norm = layer.activation_fn, plain_modules.layer_norm(layer.final_layer_norm)

    def __call__(
        self, x: Tensor, encoder_out: Any, incremental_state: Dict[str, Any], need_weights: bool
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """x: B x C. Returns B x C and, if asked, the mean weights of the heads, B x 1 x S."""
        before, weights = self.normalize_before, None
        y = self.self_attention(self.self_attention_norm(x) if before else x, incremental_state)
        x = x + y if before else self.self_attention_norm(x + y)
        if self.cross is not None:
            y = self.cross_norm(x) if before else x
            y, weights = self._attend_to_source(y, encoder_out, incremental_state, need_weights)
            x = x + y if before else self.cross_norm(x + y)
        y = self.fc2(self.activation(self.fc1(self.final_norm(x) if before else x)))
        return (x + y if before else self.final_norm(x + y)), weights

    def _attend_to_source(
        self, x: Tensor, encoder_out: Any, incremental_state: Dict[str, Any], need_weights: bool
    ) -> Tuple[Tensor, Optional[Tensor]]:
        if self.cross_step is not None and self.cross_step.has_keys(incremental_state):
            x, weights = self.cross_step(x, incremental_state)
            return x, weights.mean(dim=1).view(x.size(0), 1, -1) if need_weights else None
        (keys,), masks = encoder_out["encoder_out"], encoder_out["encoder_padding_mask"]
        query, mask = x.unsqueeze(0), masks[0] if masks else None
        y, weights = self.cross(query, keys, keys, mask, incremental_state, need_weights, static_kv=True)
        return y.squeeze(0), None if weights is None else weights.float().to(x)
