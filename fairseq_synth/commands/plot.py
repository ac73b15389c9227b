"""``fairseq-synth plot``: pictures of what a checkpoint has learned, and of its attention to a text."""

import argparse
import functools
import os
import sys
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import fairseq_synth
from fairseq_synth.errors import UsageError
from fairseq_synth.files import whole_file

NAME = "plot"
HELP = "pictures of spans, mixture weights, random maps and attention"
ORDER = 80

SHOWN, LINES = 64, 4  # positions of a map, lines of a text


def register(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draws what the checkpoint has: adaptive spans (spans.png), mixture weights through depth "
        "(mixture.png), random and factorized maps (map-*.png, maps.npz); with --text the attention of all layers "
        "and heads to its lines (attention-*.png, attention-*.npz)."
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint that fairseq-train wrote")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for the pictures (made if missing)")
    parser.add_argument(
        "--length", type=int, metavar="L", help=f"positions of a random map to show (default: up to {SHOWN})"
    )
    parser.add_argument("--text", metavar="FILE", help="lines to read, cut into tokens as the training data was")
    parser.add_argument("--target", metavar="FILE", help="their translations (default: the model's, beam 5)")
    parser.add_argument("--lines", type=int, metavar="N", help=f"how many lines of --text (default: the first {LINES})")
    parser.add_argument("--data", metavar="DIR", help="the folder of its dict.*.txt (default: that of the training)")
    parser.add_argument("--user-dir", metavar="DIR", help="another plugin, if the model comes from one")


def run(args: argparse.Namespace) -> int:
    from fairseq_synth.inspection import figures

    _check_options(args)
    figures.require_matplotlib()
    fairseq_synth.setup()
    from fairseq_synth.inspection.loading import open_checkpoint

    opened = open_checkpoint(args.checkpoint, args.text is not None, args.data, args.user_dir)
    lines = _lines(args, opened)
    learned = list(_learned(args, opened))
    if not learned and not lines:
        raise UsageError(
            f"{args.checkpoint}: nothing to plot: {opened.arch} has no adaptive spans, no mixtures and no random maps; "
            f"give --text FILE to see its attention"
        )
    make_folder(args.out)
    for name, draw in learned:
        print(f"wrote {draw(os.path.join(args.out, name))}", flush=True)
    for path in _attention(args, opened, lines):
        print(f"wrote {path}", flush=True)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    for name in ("target", "lines", "data"):
        if getattr(args, name) is not None and args.text is None:
            raise UsageError(f"--{name} {getattr(args, name)}: has an effect only with --text FILE")
    for name in ("length", "lines"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}: must be 1 or more")


def make_folder(path: str) -> None:
    """Raises UsageError where a folder cannot be."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be made ({error.strerror}); give another folder") from error


# ---------------------------------------------------------------------- learned
def _learned(args: argparse.Namespace, opened: Any) -> Iterator[Tuple[str, Callable[[str], str]]]:
    """File names, and what writes each of them."""
    from fairseq_synth.inspection import figures, findings

    title = f"{opened.arch}, {os.path.basename(args.checkpoint)}"
    spans, mixtures, maps = findings.spans(opened.model), findings.mixtures(opened.model), findings.maps(opened.model)
    if spans:
        yield "spans.png", lambda path: figures.save(figures.spans_figure(spans, f"Attention spans of {title}"), path)
    if mixtures:
        heading = f"Mixture weights of {title}"
        yield "mixture.png", lambda path: figures.save(figures.mixtures_figure(mixtures, heading), path)
    if args.length is not None and not maps:
        raise UsageError(f"--length {args.length}: has no effect, {opened.arch} has no random maps")
    if maps:
        yield from _maps(maps, _length(args.length, maps), title)


def _length(asked: Optional[int], maps: List[Any]) -> int:
    longest = min(m.logits.size(-1) for m in maps)
    if asked is not None and asked > longest:
        raise UsageError(f"--length {asked}: the maps of this model end at {longest} positions; give {longest} or less")
    return asked or min(SHOWN, longest)


def _maps(maps: List[Any], length: int, title: str) -> Iterator[Tuple[str, Callable[[str], str]]]:
    from fairseq_synth.inspection import grids

    kinds: Dict[Tuple[str, str, str], List[Any]] = {}
    for found in maps:
        kinds.setdefault((found.place.side, found.place.kind, found.scorer), []).append(found)
    for kind, members in kinds.items():
        heading = f"{kind[0]} {kind[1]}-attention, {kind[2]}: first {length} positions ({title})"
        draw = functools.partial(grids.maps_figure, members, length, heading)
        yield "map-{}-{}-{}.png".format(*kind), functools.partial(_save_drawn, draw)
    arrays = {"{}.{}.{}".format(*m.place) + f".{m.scorer}": m.logits[:, :length, :length].numpy() for m in maps}
    yield "maps.npz", lambda path: save_arrays(path, arrays)


def _save_drawn(draw: Callable[[], Any], path: str) -> str:
    from fairseq_synth.inspection import figures

    return figures.save(draw(), path)


def save_arrays(path: str, arrays: Dict[str, Any]) -> str:
    """Written whole or not at all. Returns the path."""
    import numpy as np

    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)
    return path


# ---------------------------------------------------------------------- attention
def _lines(args: argparse.Namespace, opened: Any) -> List[Any]:
    if args.text is None:
        return []
    from fairseq_synth.inspection import reading

    if args.target is not None and not reading.is_translation(opened):
        raise UsageError(f"--target {args.target}: has no effect, {opened.arch} is a language model")
    every = reading.pairs(args.text, args.target)
    lines = every[: LINES if args.lines is None else args.lines]
    if len(lines) < len(every):
        print(f"the first {len(lines)} of {len(every)} lines (--lines)", file=sys.stderr)
    missing, tokens = reading.unknown(opened, lines)
    if missing:
        print(
            f"{missing} of {tokens} tokens are not in the dictionary: is {args.text} cut into tokens as the training "
            f"data was?",
            file=sys.stderr,
        )
    return lines


def _attention(args: argparse.Namespace, opened: Any, lines: List[Any]) -> Iterator[str]:
    """Draws and yields the path, kind by kind and line by line."""
    import numpy as np

    from fairseq_synth.inspection import figures, grids, reading

    for number, found in enumerate(reading.read(opened, lines), 1):
        if not found.weights:
            raise UsageError(f"{args.checkpoint}: {opened.arch} has no attention that can be watched")
        for kind, weights in found.weights.items():
            name = f"attention-{number}-{kind.replace('_', '-')}.png"
            title = f"{kind.replace('_', ' ')} attention, line {number} ({opened.arch})"
            yield figures.save(
                grids.attention_figure(weights, *found.tokens(kind), title), os.path.join(args.out, name)
            )
        arrays = {kind: weights.numpy() for kind, weights in found.weights.items()}
        words = {"source": np.array(found.source), "target": np.array(found.target)}
        yield save_arrays(os.path.join(args.out, f"attention-{number}.npz"), {**arrays, **words})
