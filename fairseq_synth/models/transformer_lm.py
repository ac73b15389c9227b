"""``--arch synth_transformer_lm*``: fairseq's Transformer language model with the attention of your choice."""

import dataclasses
from dataclasses import field
from typing import Any, Dict, Type

from fairseq.dataclass import FairseqDataclass
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig
from fairseq.modules import AdaptiveInput, CharacterTokenEmbedder
from fairseq.utils import eval_str_list
from omegaconf import II
from torch import nn

from fairseq_synth.errors import UsageError, option_name
from fairseq_synth.models import limits
from fairseq_synth.models.base import SynthModel, finish_model
from fairseq_synth.models.config import flat_options, options_for
from fairseq_synth.models.decoder import SynthDecoder
from fairseq_synth.models.options import HOLDERS
from fairseq_synth.models.presets import register_presets

SIDES = ("decoder",)
# sizes that follow --decoder-embed-dim, as in fairseq's transformer
_FOLLOWING = [
    (name, int, field(default=II("model.decoder_embed_dim"))) for name in ("decoder_input_dim", "decoder_output_dim")
]
_OPTIONS = [option for option in options_for(SIDES) if option[0] != "decoder_layers_to_keep"]
SynthTransformerLMConfig = dataclasses.make_dataclass(
    "SynthTransformerLMConfig",
    [*_OPTIONS, *_FOLLOWING],
    bases=(TransformerLanguageModelConfig,),
    namespace={"__module__": __name__},
)
HOLDERS.append((SynthTransformerLMConfig, "synthesizer_"))


class SynthTransformerLMBase(SynthModel, TransformerLanguageModel):
    """Decoder-only Transformer; with ``dot_product`` it is fairseq's ``transformer_lm``."""

    defaults: Type[FairseqDataclass] = SynthTransformerLMConfig
    sides = SIDES

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "SynthTransformerLMBase":
        """Build from flat options. Raises UsageError for options that cannot work or have no effect."""
        flat = flat_options(args, cls.defaults)
        if flat["max_target_positions"] is None:
            args.max_target_positions = flat["tokens_per_sample"] or 1024
        cfg = cls.config(args)
        if cfg.offload_activations:
            cfg.checkpoint_activations = True  # as in fairseq
        if cfg.decoder.layers_to_keep:
            cfg.decoder.layers = len(cfg.decoder.layers_to_keep.split(","))
        embed_tokens = _embed_tokens(cls, cfg, task.source_dictionary)
        decoder = SynthDecoder(cfg, task.target_dictionary, embed_tokens, no_encoder_attn=True)
        _check_block(task, flat["tokens_per_sample"], decoder)
        return finish_model(cls(decoder), cfg)


def _embed_tokens(model: Any, cfg: Any, words: Any) -> nn.Module:
    """The three kinds of input embedding of fairseq's language model."""
    if cfg.character_embeddings:
        filters = [
            tuple(int(n) for n in pair.split(",")) for pair in cfg.character_filters.strip("[() ]").split("), (")
        ]
        size, highway = cfg.character_embedding_dim, cfg.char_embedder_highway_layers
        return CharacterTokenEmbedder(words, filters, size, cfg.decoder.embed_dim, highway)
    if not cfg.adaptive_input:
        return model.build_embedding(cfg, words, cfg.decoder.input_dim)
    _check_tying(cfg)
    limits.cutoffs_below("adaptive_input_cutoff", cfg.adaptive_input_cutoff, len(words))
    cutoff = eval_str_list(cfg.adaptive_input_cutoff, type=int)
    noise = cfg.quant_noise
    return AdaptiveInput(
        len(words), words.pad(), cfg.decoder.input_dim, cfg.adaptive_input_factor, cfg.decoder.embed_dim, cutoff,
        noise.pq, noise.pq_block_size,
    )  # fmt: skip


def _check_tying(cfg: Any) -> None:
    if not cfg.tie_adaptive_weights:
        return
    for one, other in (
        ("adaptive_input_factor", "adaptive_softmax_factor"),
        ("adaptive_input_cutoff", "adaptive_softmax_cutoff"),
        ("decoder_input_dim", "decoder_output_dim"),
    ):
        if str(getattr(cfg, one)) != str(getattr(cfg, other)):
            flags = [option_name(name) for name in (one, other)]
            raise UsageError(
                f"{flags[0]} {getattr(cfg, one)}: must equal {flags[1]} {getattr(cfg, other)} with "
                f"--tie-adaptive-weights; change one, or drop --tie-adaptive-weights"
            )


def _check_block(task: Any, tokens_per_sample: Any, decoder: SynthDecoder) -> None:
    """A block longer than the model is filtered out by fairseq, silently where it evaluates."""
    options = getattr(task, "args", None) or getattr(task, "cfg", None)
    mode = getattr(options, "sample_break_mode", None)
    limit = decoder.max_positions()
    if tokens_per_sample and str(mode) in ("None", "none", "complete") and tokens_per_sample > limit:
        raise UsageError(
            f"--tokens-per-sample {tokens_per_sample}: longer than the model's {limit} positions; "
            f"give --tokens-per-sample {limit} or a larger --synthesizer-max-length or --max-target-positions"
        )


_BIG = {"decoder_layers": 12, "decoder_embed_dim": 1024, "decoder_ffn_embed_dim": 4096, "decoder_attention_heads": 16}
_CUTOFF = "20000,60000"
# name -> what differs from fairseq's `transformer_lm`, after fairseq's presets of these names
PRESETS: Dict[str, Dict[str, Any]] = {
    "synth_transformer_lm": {},
    "synth_transformer_lm_gpt": {
        "decoder_layers": 12,
        "decoder_embed_dim": 768,
        "decoder_ffn_embed_dim": 3072,
        "decoder_attention_heads": 12,
        "attention_dropout": 0.1,
        "activation_fn": "gelu",
        "decoder_normalize_before": True,
    },
    "synth_transformer_lm_wiki103": {
        **_BIG,
        "decoder_layers": 16,
        "decoder_attention_heads": 8,
        "dropout": 0.3,
        "adaptive_input": True,
        "tie_adaptive_weights": True,
        "tie_adaptive_proj": True,
        "adaptive_input_cutoff": _CUTOFF,
        "adaptive_softmax_cutoff": _CUTOFF,
        "adaptive_softmax_dropout": 0.2,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "no_decoder_final_norm": True,
        "decoder_normalize_before": True,
    },
    "synth_transformer_lm_gbw": {
        **_BIG,
        "decoder_embed_dim": 512,
        "attention_dropout": 0.1,
        "no_decoder_final_norm": True,
        "decoder_normalize_before": True,
    },
}

register_presets(SynthTransformerLMBase, PRESETS)
