"""Every option of the plugin: nested dataclasses inside, one generated flat dataclass outside.

The flat one gives the same names on the command line (``--encoder-self-attention``), in hydra yaml
(``encoder_self_attention``) and in checkpoints. fairseq reads types from the annotations, so this file must not
say ``from __future__ import annotations``.
"""

import dataclasses
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig, QuantNoiseConfig
from omegaconf import II, DictConfig, OmegaConf

from fairseq_synth.freezing.options import FreezingOptions
from fairseq_synth.models.span_options import SpanOptions
from fairseq_synth.models.validation import validate
from fairseq_synth.modules.scorers.base import INITS

KEEP_HELP = "which layers to keep when pruning, comma-separated: 0,2,4"
InitChoice: Any = ChoiceEnum(list(INITS))
SPAN_HELP = "each head learns how far it looks, at most this many tokens (0: everywhere)"
INNER_HELP = "width of queries, keys and values, all heads together (0: the embedding dimension)"
SPEC_HELP = "scorer, mixture (random+dot_product) or list of layers (dot_product*2,random*4) for "


@dataclass
class SynthesizerConfig(FairseqDataclass):
    max_length: int = field(default=256, metadata={"help": "N: the longest sequence the synthesized maps cover"})
    rank: int = field(default=8, metadata={"help": "rank of factorized_random"})
    init: InitChoice = field(
        default="glorot",
        metadata={"help": "initial maps: glorot (near-uniform attention, as in the authors' code) or normal"},
    )
    factors: Optional[str] = field(
        default=None,
        metadata={"help": "a,b with a*b = N for factorized_dense (default: the most even pair)"},
    )
    share_output: bool = field(
        default=False,
        metadata={"help": "dense: one output matrix for all heads, no biases (the authors' code)"},
    )
    map_seed: int = field(default=1, metadata={"help": "seed of the fixed_random maps"})


@dataclass
class SynthEncoderConfig(EncDecBaseConfig):
    # fairseq declares a list and splits a string
    layers_to_keep: Optional[str] = field(default=None, metadata={"help": KEEP_HELP})
    self_attention: str = field(default="random", metadata={"help": SPEC_HELP + "encoder self-attention"})
    adaptive_span: int = field(default=0, metadata={"help": SPAN_HELP})
    attention_dim: int = field(default=0, metadata={"help": INNER_HELP})


@dataclass
class SynthDecoderConfig(DecoderConfig):
    layers_to_keep: Optional[str] = field(default=None, metadata={"help": KEEP_HELP})
    self_attention: str = field(default="random", metadata={"help": SPEC_HELP + "decoder self-attention"})
    adaptive_span: int = field(default=0, metadata={"help": SPAN_HELP})
    attention_dim: int = field(default=0, metadata={"help": INNER_HELP})


@dataclass
class SynthTransformerConfig(FreezingOptions, SpanOptions, TransformerConfig):
    encoder: SynthEncoderConfig = field(default_factory=SynthEncoderConfig)
    decoder: SynthDecoderConfig = field(default_factory=SynthDecoderConfig)
    quant_noise: QuantNoiseConfig = field(default_factory=QuantNoiseConfig)
    synthesizer: SynthesizerConfig = field(default_factory=SynthesizerConfig)
    cross_attention: str = field(
        default="dot_product", metadata={"help": SPEC_HELP + "the decoder's attention to the encoder"}
    )
    embedding_dim: int = field(
        default=0,
        metadata={
            "help": "size of all embeddings, source, target and output, where it is not the model's: projections "
            "join them (0: the model's dimension)"
        },
    )


SECTIONS: Tuple[str, ...] = ("encoder", "decoder", "quant_noise", "synthesizer")
# as in fairseq's transformer: the decoder takes the encoder's sizes where nothing else is said
FOLLOWS: Dict[str, str] = {
    "decoder_embed_dim": "encoder_embed_dim",
    "decoder_ffn_embed_dim": "encoder_ffn_embed_dim",
    "decoder_input_dim": "decoder_embed_dim",
    "decoder_output_dim": "decoder_embed_dim",
}


def _section_type(name: str) -> Type[FairseqDataclass]:
    return next(f.type for f in dataclasses.fields(SynthTransformerConfig) if f.name == name)  # type: ignore


def _flat_fields() -> List[Tuple[str, Any, Any]]:
    """(name, type, field) of the flat dataclass, sections unfolded with their name as prefix."""
    flat = []
    for f in dataclasses.fields(SynthTransformerConfig):
        if f.name in SECTIONS:
            inner = [(f"{f.name}_{g.name}", g) for g in dataclasses.fields(_section_type(f.name))]
        else:
            inner = [(f.name, f)]
        for name, g in inner:
            if g.name == "_name":
                continue
            default = II(f"model.{FOLLOWS[name]}") if name in FOLLOWS else g.default
            flat.append((name, g.type, field(default=default, metadata=dict(g.metadata))))
    return flat


SynthTransformerFlatConfig = dataclasses.make_dataclass(
    "SynthTransformerFlatConfig", _flat_fields(), bases=(FairseqDataclass,), namespace={"__module__": __name__}
)


def with_defaults(class_name: str, base: Type[FairseqDataclass], defaults: Mapping[str, Any]) -> Type[FairseqDataclass]:
    """``base`` with other defaults: a named architecture that behaves alike on every command and in yaml."""
    known = {f.name: f for f in dataclasses.fields(base)}
    changed = [
        (name, known[name].type, field(default=value, metadata=dict(known[name].metadata)))
        for name, value in defaults.items()
    ]
    return dataclasses.make_dataclass(class_name, changed, bases=(base,), namespace={"__module__": __name__})


def flat_options(args: Any, defaults: Optional[Type[FairseqDataclass]] = None) -> Dict[str, Any]:
    """A flat dict of options from what fairseq hands to ``build_model`` (DictConfig, Namespace or dataclass).

    Options that are missing (an old checkpoint) get the dataclass's default; FOLLOWS is resolved.
    """
    given: Any
    if isinstance(args, DictConfig):
        given = OmegaConf.to_container(args, resolve=True, enum_to_str=True)
    else:
        given = dict(vars(args))
    flat = {f.name: f.default for f in dataclasses.fields(defaults or SynthTransformerFlatConfig)}
    flat.update({k: v for k, v in given.items() if v is not None and not str(v).startswith("${")})
    for name, source in FOLLOWS.items():
        if str(flat[name]).startswith("${"):
            flat[name] = flat[source]
    # what would have come from the task, were there one
    return {k: None if str(v).startswith("${") else v for k, v in flat.items()}


def nested_config(
    args: Any,
    defaults: Optional[Type[FairseqDataclass]] = None,
    sides: Tuple[str, ...] = ("encoder", "decoder", "cross"),
) -> SynthTransformerConfig:
    """The nested config that fairseq's modules read, from flat options. UsageError for what cannot work.

    sides: the attentions that the model has.
    """
    flat = flat_options(args, defaults)
    config = SynthTransformerConfig()
    for f in dataclasses.fields(SynthTransformerConfig):
        if f.name in SECTIONS:
            section = _section_type(f.name)()
            for g in dataclasses.fields(section):
                if f"{f.name}_{g.name}" in flat:
                    setattr(section, g.name, flat.pop(f"{f.name}_{g.name}"))
            setattr(config, f.name, section)
    for name, value in flat.items():  # a language model has a few options more
        if name != "_name":
            setattr(config, name, value)
    validate(config, sides)
    return config


def namespace(defaults: Type[FairseqDataclass], overrides: Mapping[str, Any]) -> Namespace:
    """All options of an architecture as fairseq's commands would collect them (for use from Python)."""
    flat = flat_options(Namespace(**overrides), defaults)
    return Namespace(**flat)
