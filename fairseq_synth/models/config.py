"""From flat options to the nested config that fairseq's modules read.

Nested dataclasses inside, one generated flat dataclass outside: it gives the same names on the command line
(``--encoder-self-attention``), in hydra yaml (``encoder_self_attention``) and in checkpoints. fairseq reads types from
the annotations, so this file must not say ``from __future__ import annotations``.
"""

import dataclasses
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type

from fairseq.dataclass import FairseqDataclass
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig, QuantNoiseConfig
from omegaconf import II, DictConfig, OmegaConf

from fairseq_synth.freezing.options import FreezingOptions
from fairseq_synth.models.options import HOLDERS, SPEC_HELP, SpanOptions, SynthesizerConfig, side_options
from fairseq_synth.models.validation import resolve
from fairseq_synth.modules.scorers.spec import LayerSpec


@dataclass
class SynthEncoderConfig(side_options("encoder"), EncDecBaseConfig):  # type: ignore[misc]
    pass


@dataclass
class SynthDecoderConfig(side_options("decoder"), DecoderConfig):  # type: ignore[misc]
    pass


@dataclass
class SynthTransformerConfig(FreezingOptions, SpanOptions, TransformerConfig):
    encoder: SynthEncoderConfig = field(default_factory=SynthEncoderConfig)
    decoder: SynthDecoderConfig = field(default_factory=SynthDecoderConfig)
    quant_noise: QuantNoiseConfig = field(default_factory=QuantNoiseConfig)
    synthesizer: SynthesizerConfig = field(default_factory=SynthesizerConfig)  # type: ignore[valid-type]
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


class ResolvedConfig(SynthTransformerConfig):
    """A config that was checked. attentions: the scorers of every layer that is built, by side (encoder, decoder,
    cross)."""

    attentions: Dict[str, List[LayerSpec]]


SECTIONS: Tuple[str, ...] = ("encoder", "decoder", "quant_noise", "synthesizer")
SIDES: Tuple[str, ...] = ("encoder", "decoder", "cross")
# as in fairseq's transformer: the decoder takes the encoder's sizes where nothing else is said
FOLLOWS: Dict[str, str] = {
    "decoder_embed_dim": "encoder_embed_dim",
    "decoder_ffn_embed_dim": "encoder_ffn_embed_dim",
    "decoder_input_dim": "decoder_embed_dim",
    "decoder_output_dim": "decoder_embed_dim",
}


def _section_type(config: Type[FairseqDataclass], name: str) -> Type[FairseqDataclass]:
    return next(f.type for f in dataclasses.fields(config) if f.name == name)  # type: ignore


def _flat_fields(config: Type[FairseqDataclass]) -> List[Tuple[str, Any, Any]]:
    """(name, type, field) of the flat dataclass, sections unfolded with their name as prefix."""
    flat = []
    for f in dataclasses.fields(config):
        if f.name in SECTIONS and dataclasses.is_dataclass(f.type):
            inner = [(f"{f.name}_{g.name}", g) for g in dataclasses.fields(_section_type(config, f.name))]
        else:
            inner = [(f.name, f)]
        for name, g in inner:
            if g.name == "_name":
                continue
            default = II(f"model.{FOLLOWS[name]}") if name in FOLLOWS else g.default
            flat.append((name, g.type, field(default=default, metadata=dict(g.metadata))))
    return flat


SynthTransformerFlatConfig = dataclasses.make_dataclass(
    "SynthTransformerFlatConfig",
    _flat_fields(SynthTransformerConfig),
    bases=(FairseqDataclass,),
    namespace={"__module__": __name__},
)
HOLDERS.append((SynthTransformerFlatConfig, "synthesizer_"))


def own_options(flat: Type[Any]) -> List[dataclasses.Field]:
    """The options of a flat dataclass that fairseq's own transformer does not have."""
    theirs = {name for name, _, _ in _flat_fields(TransformerConfig)}
    return [f for f in dataclasses.fields(flat) if f.name not in theirs and f.name != "_name"]


def options_for(sides: Tuple[str, ...]) -> List[Tuple[str, Any, Any]]:
    """(name, type, field) of the own options that a model with attentions in ``sides`` has."""
    absent = tuple(f"{side}_" for side in SIDES if side not in sides)
    fields = [f for f in own_options(SynthTransformerFlatConfig) if not f.name.startswith(absent or "\n")]
    return [(f.name, f.type, field(default=f.default, metadata=dict(f.metadata))) for f in fields]


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
        if str(flat.get(name, "")).startswith("${"):
            flat[name] = flat[source]
    # what would have come from the task, were there one
    return {k: None if str(v).startswith("${") else v for k, v in flat.items()}


def nested_config(
    args: Any, defaults: Optional[Type[FairseqDataclass]] = None, sides: Tuple[str, ...] = SIDES
) -> ResolvedConfig:
    """The nested config that fairseq's modules read, checked, from flat options. UsageError for what cannot work.

    sides: the attentions that the model has.
    """
    flat = flat_options(args, defaults)
    config = ResolvedConfig()
    for f in dataclasses.fields(SynthTransformerConfig):
        if f.name in SECTIONS:
            section = _section_type(SynthTransformerConfig, f.name)()
            for g in dataclasses.fields(section):
                if f"{f.name}_{g.name}" in flat:
                    setattr(section, g.name, flat.pop(f"{f.name}_{g.name}"))
            setattr(config, f.name, section)
    for name, value in flat.items():  # a language model has a few options more
        if name != "_name":
            setattr(config, name, value)
    return resolve(config, sides)


def namespace(defaults: Type[FairseqDataclass], overrides: Mapping[str, Any]) -> Namespace:
    """All options of an architecture as fairseq's commands would collect them (for use from Python)."""
    flat = flat_options(Namespace(**overrides), defaults)
    return Namespace(**flat)
