"""``fairseq-synth options``: the architectures, scorers and options of this plugin."""

import argparse
import dataclasses
import sys
import textwrap
from typing import Any, List, Tuple

import fairseq_synth
from fairseq_synth.errors import option_name

NAME = "options"
HELP = "list the architectures, scorers and options of this plugin"
ORDER = 10


def register(parser: argparse.ArgumentParser) -> None:
    """It has no arguments."""


def run(args: argparse.Namespace) -> int:
    """What ``fairseq-train --help`` leaves out."""
    fairseq_synth.setup()
    from fairseq_synth.models.config import SynthTransformerFlatConfig
    from fairseq_synth.models.sequential_lm import PRESETS as SEQUENTIAL
    from fairseq_synth.models.sequential_lm import SequentialLMConfig
    from fairseq_synth.models.transformer import PRESETS
    from fairseq_synth.models.transformer_lm import PRESETS as LM_PRESETS
    from fairseq_synth.modules.scorers import SCORERS

    print("Architectures (--arch), with what differs from fairseq's transformer and\ntransformer_lm:")
    for name, changes in {**PRESETS, **LM_PRESETS}.items():
        print(f"  {name}\n      {_describe_sizes(changes)}")
    print("\nScorers, alone or summed in a mixture (random+dot_product):")
    for name, cls in sorted(SCORERS.items()):
        _print_item(name, _first_line(sys.modules[cls.__module__]))
    print("\nOptions beyond those of fairseq's models (a language model has the decoder's):")
    for flag, field in own_options(SynthTransformerFlatConfig):
        _print_item(f"{flag}  (default: {field.default})", field.metadata["help"])
    print("\nLanguage models over streams of blocks (--task streaming_lm):")
    print(textwrap.fill(", ".join(SEQUENTIAL), 80, initial_indent="  ", subsequent_indent="  "))
    print("\nTheir options:")
    for field in dataclasses.fields(SequentialLMConfig):
        if field.name != "_name":
            _print_item(f"{option_name(field.name)}  (default: {field.default})", field.metadata["help"])
    return 0


def own_options(flat: Any) -> List[Tuple[str, Any]]:
    """(flag, field) of the options that fairseq's own transformer does not have."""
    from fairseq.models.transformer import TransformerConfig

    theirs = set()
    for field in dataclasses.fields(TransformerConfig):
        inner = getattr(field.type, "__dataclass_fields__", None)
        theirs |= {field.name} if inner is None else {f"{field.name}_{name}" for name in inner}
    fields = [f for f in dataclasses.fields(flat) if f.name not in theirs and f.name != "_name"]
    return [(option_name(f.name), f) for f in fields]


def _print_item(title: str, text: str) -> None:
    print(f"  {title}\n{textwrap.fill(text, 80, initial_indent=' ' * 6, subsequent_indent=' ' * 6)}")


def _describe_sizes(changes: Any) -> str:
    if not changes:
        return "nothing"
    side = "encoder" if "encoder_layers" in changes else "decoder"
    layers = "+".join(str(changes[k]) for k in ("encoder_layers", "decoder_layers") if k in changes)
    sizes = [changes[f"{side}_{k}"] for k in ("embed_dim", "ffn_embed_dim", "attention_heads")]
    return "{} layers, dimension {}, feed-forward {}, {} heads".format(layers, *sizes)


def _first_line(module: Any) -> str:
    return (module.__doc__ or "").strip().splitlines()[0].split(": ", 1)[-1]
