"""``fairseq-synth options``: the architectures, scorers and options of this plugin."""

import argparse
import dataclasses
import sys
import textwrap
from typing import Any

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
    from fairseq_synth.models.config import SynthTransformerFlatConfig, own_options
    from fairseq_synth.models.presets import PRESETS
    from fairseq_synth.models.sequential_lm import SequentialLMConfig
    from fairseq_synth.modules.scorers import SCORERS

    print("Architectures (--arch), with what differs from fairseq's transformer and\ntransformer_lm:")
    sequential = [name for name, preset in PRESETS.items() if issubclass(preset.options, SequentialLMConfig)]
    for name, preset in PRESETS.items():
        if name not in sequential:
            print(f"  {name}\n      {_describe_sizes(preset.changes)}")
    print("\nScorers, alone or summed in a mixture (random+dot_product):")
    for name, cls in sorted(SCORERS.items()):
        _print_item(name, _first_line(sys.modules[cls.__module__]))
    print("\nOptions beyond those of fairseq's models (a language model has the decoder's):")
    for field in own_options(SynthTransformerFlatConfig):
        _print_option(field)
    print("\nLanguage models over streams of blocks (--task streaming_lm):")
    print(textwrap.fill(", ".join(sequential), 80, initial_indent="  ", subsequent_indent="  "))
    print("\nTheir options:")
    for field in dataclasses.fields(SequentialLMConfig):
        if field.name != "_name":
            _print_option(field)
    return 0


def _print_option(field: Any) -> None:
    _print_item(f"{option_name(field.name)}  (default: {field.default})", field.metadata["help"])


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
