"""Refuses, in one line each, what a configuration cannot mean; resolves the attention of every layer."""

import copy
import dataclasses
from typing import Any, Dict, List, Set, Tuple

from fairseq_synth.errors import UsageError, option_name
from fairseq_synth.models import limits
from fairseq_synth.modules.scorers.base import check_options, scorer_options, takers
from fairseq_synth.modules.scorers.spec import LayerSpec, parse_spec

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
SPEC_OPTIONS = {
    "encoder": "--encoder-self-attention",
    "decoder": "--decoder-self-attention",
    "cross": "--cross-attention",
}


def resolve(cfg: Any, sides: Tuple[str, ...] = tuple(SPEC_OPTIONS)) -> Any:
    """A checked copy of a nested config with attentions in ``sides``, with the scorers of every layer in
    ``attentions``. UsageError names option, value, limit and fix."""
    cfg = copy.deepcopy(cfg)
    limits.probabilities((name, getattr(cfg, name)) for name in DROPOUTS)
    for side in (s for s in sides if s != "cross"):
        _check_numbers(side, getattr(cfg, side))
        _check_shape(side, getattr(cfg, side))
        _check_layers_to_keep(side, getattr(cfg, side))
    used = {side: _layer_specs(cfg, side) for side in sides}
    if cfg.no_cross_attention and "cross" in used:
        if cfg.cross_attention != "dot_product":
            raise UsageError(
                f"--cross-attention {cfg.cross_attention}: has no effect with --no-cross-attention; drop one of them"
            )
        del used["cross"]
    if "decoder" in sides:
        _resolve_embedding_dim(cfg)
    _check_stock_only(cfg, used)
    _check_together(cfg, sides)
    _check_spans_and_memory(cfg, [s for s in sides if s != "cross"])
    names = {name for specs in used.values() for spec in specs for name in spec.names}
    _check_synthesizer(cfg.synthesizer, names)
    if cfg.quant_noise.scalar and "factorized_dense" in names:
        raise UsageError(
            f"--quant-noise-scalar {cfg.quant_noise.scalar}: cannot quantise what factorized_dense multiplies; drop one"
        )
    cfg.attentions = used
    return cfg


def _layer_specs(cfg: Any, side: str) -> List[LayerSpec]:
    """The scorers of each layer that is built; side: encoder, decoder or cross (of the decoder)."""
    section = cfg.encoder if side == "encoder" else cfg.decoder
    spec = cfg.cross_attention if side == "cross" else section.self_attention
    specs = parse_spec(spec, section.layers, SPEC_OPTIONS[side], section.attention_heads)
    keep = section.layers_to_keep
    return [specs[int(i)] for i in sorted(keep.split(","), key=int)] if keep else specs


def _check_numbers(side: str, section: Any) -> None:
    sizes = ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
    limits.at_least(1, ((f"{side}_{name}", getattr(section, name)) for name in sizes))
    limits.probabilities([(f"{side}_layerdrop", section.layerdrop)])


def _check_together(cfg: Any, sides: Tuple[str, ...]) -> None:
    """Options of fairseq's that break, or do nothing, beside others."""
    if getattr(cfg, "scale_heads", False) and "decoder" in sides and cfg.decoder.attention_dim:
        raise UsageError(
            f"--scale-heads: works on heads of the model's width, not with --decoder-attention-dim "
            f"{cfg.decoder.attention_dim}; drop one of the two"
        )
    if getattr(cfg, "adaptive_softmax_cutoff", None) is not None:
        limits.rising_cutoffs("adaptive_softmax_cutoff", cfg.adaptive_softmax_cutoff)
    elif getattr(cfg, "adaptive_softmax_factor", 4) != 4:
        raise UsageError(
            f"--adaptive-softmax-factor {cfg.adaptive_softmax_factor:g}: has no effect without "
            f"--adaptive-softmax-cutoff; add it, or drop the factor"
        )
    if "encoder" in sides and getattr(cfg, "adaptive_input", False):
        raise UsageError(
            "--adaptive-input: is for language models (synth_transformer_lm), here it has no effect; drop it"
        )


def _check_shape(side: str, section: Any) -> None:
    inner = section.attention_dim
    if inner and (inner < 0 or section.attention_heads < 1 or inner % section.attention_heads):
        raise UsageError(
            f"--{side}-attention-dim {inner}: must be a positive multiple of --{side}-attention-heads "
            f"{section.attention_heads}; change one of the two, or give 0 for --{side}-embed-dim {section.embed_dim}"
        )
    if not inner and (section.attention_heads < 1 or section.embed_dim % section.attention_heads):
        raise UsageError(
            f"--{side}-attention-heads {section.attention_heads}: must divide --{side}-embed-dim "
            f"{section.embed_dim}; change one of the two"
        )


def _resolve_embedding_dim(cfg: Any) -> None:
    """--embedding-dim stands for the decoder's input and output dimension; the encoder's is in its embedding."""
    size, decoder = cfg.embedding_dim, cfg.decoder
    if size < 0:
        raise UsageError(f"--embedding-dim {size}: must be a positive size, or 0 for that of the model")
    for option in ("adaptive_input", "character_embeddings"):
        if size and getattr(cfg, option, False):
            flag = option_name(option)
            raise UsageError(f"--embedding-dim {size}: has no effect with {flag}, which has sizes of its own; drop one")
    for option in ("input_dim", "output_dim"):
        given = int(getattr(decoder, option))
        if size and given not in (decoder.embed_dim, size):
            flag = option_name(f"decoder_{option}")
            raise UsageError(f"--embedding-dim {size}: is {flag} too, which is {given}; drop one of the two")
        setattr(decoder, option, size or given)


def _check_layers_to_keep(side: str, section: Any) -> None:
    keep = section.layers_to_keep
    if not keep:
        return
    wrong = [i for i in keep.split(",") if not (i.strip().isdecimal() and len(i) < 10 and int(i) < section.layers)]
    if wrong:
        raise UsageError(
            f"--{side}-layers-to-keep {keep}: '{wrong[0]}' is not a layer; give numbers from 0 to "
            f"{section.layers - 1}, for example 0,{section.layers - 1}"
        )


def _check_stock_only(cfg: Any, used: Dict[str, List[LayerSpec]]) -> None:
    """fairseq's own variants of dot-product attention cannot carry another scorer."""
    for option, sides in (
        ("encoder_xformers_att_config", ("encoder",)),
        ("decoder_xformers_att_config", ("decoder", "cross")),
        ("cross_self_attention", ("decoder",)),
    ):
        if not getattr(cfg, option):
            continue
        for side in sides:
            section = cfg.encoder if side == "encoder" else cfg.decoder
            plain = not (section.adaptive_span or cfg.persistent_memory) or side == "cross"
            plain = plain and not section.attention_dim
            if not plain or not all(spec.is_dot_product for spec in used.get(side, [])):
                flag = option_name(option)
                raise UsageError(
                    f"{flag}: changes fairseq's dot-product attention only; give {SPEC_OPTIONS[side]} dot_product "
                    f"without spans, persistent memory and --*-attention-dim, or drop {flag}"
                )


def _check_spans_and_memory(cfg: Any, sides: List[str]) -> None:
    spans = [getattr(cfg, side).adaptive_span for side in sides]
    for side, span in zip(sides, spans):
        if span < 0:
            raise UsageError(f"--{side}-adaptive-span {span}: must be a number of tokens, or 0 for no span")
    limits.at_least(0, [("span_loss", cfg.span_loss)])
    limits.at_least(1, [("span_ramp", cfg.span_ramp)])
    fields = {f.name: f for f in dataclasses.fields(cfg)}
    for name, flag in (("span_ramp", "--span-ramp"), ("span_loss", "--span-loss")):
        if not any(spans) and getattr(cfg, name) != fields[name].default:
            options = " or ".join(f"--{side}-adaptive-span" for side in sides)
            raise UsageError(f"{flag} {getattr(cfg, name)}: has no effect without {options}; add it, or drop {flag}")
    if cfg.persistent_memory < 0:
        raise UsageError(f"--persistent-memory {cfg.persistent_memory}: must be a number of vectors, or 0 for none")
    if cfg.keep_feed_forward and not cfg.persistent_memory:
        raise UsageError("--keep-feed-forward: has no effect without --persistent-memory; drop it or add N vectors")
    if cfg.persistent_memory and not cfg.keep_feed_forward and getattr(cfg, "scale_fc", False):
        raise UsageError(
            "--scale-fc: there is no feed-forward with --persistent-memory; drop it or --keep-feed-forward"
        )


def _check_synthesizer(options: Any, names: Set[str]) -> None:
    for name in sorted(names):
        check_options(name, options)
    for option in scorer_options():
        value = getattr(options, option.name)
        if str(value) != str(option.default) and not names.intersection(takers(option.name)):
            raise UsageError(
                f"{option_name(f'synthesizer_{option.name}')} {value}: has no effect with {', '.join(sorted(names))}; "
                f"drop it, or use one of {', '.join(takers(option.name))}"
            )
