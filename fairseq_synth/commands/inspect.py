"""``fairseq-synth inspect``: what is in a checkpoint."""

import argparse
import json
import textwrap
from typing import Any, Dict, Iterator, List

import fairseq_synth
from fairseq_synth.errors import UsageError

NAME = "inspect"
HELP = "architecture, parameters, spans, mixture weights and frozen parts of a checkpoint"
ORDER = 70

WIDTH = 80


def register(parser: argparse.ArgumentParser) -> None:
    parser.description = "Shared parameters count once. Spans are in tokens."
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint that fairseq-train wrote")
    parser.add_argument("--all", action="store_true", help="a line for every parameter: name, shape, trainable")
    parser.add_argument("--json", action="store_true", help="everything as JSON (the parameters one by one too)")
    parser.add_argument("--user-dir", metavar="DIR", help="another plugin, if the model comes from one")


def run(args: argparse.Namespace) -> int:
    if args.json and args.all:
        raise UsageError("--all: has no effect with --json, which holds every parameter; drop one")
    fairseq_synth.setup()
    from fairseq_synth.inspection.loading import open_checkpoint
    from fairseq_synth.inspection.summary import summary

    found = summary(open_checkpoint(args.checkpoint, user_dir=args.user_dir))
    if args.json:
        print(json.dumps(found, indent=1, default=str))
        return 0
    for lines in (_head(found), _components(found), _all(found) if args.all else [], _spans(found), _mixtures(found),
                  _frozen(found)):  # fmt: skip
        for line in lines:
            print(line)
    return 0


def _head(found: Dict[str, Any]) -> Iterator[str]:
    architecture, training = found["architecture"], found["training"]
    yield found["checkpoint"]
    layers = " + ".join(f"{n} {side}" for side, n in architecture["layers"].items())
    heads, words = (", ".join(f"{n:,}" for n in architecture[name]) for name in ("heads", "vocabulary"))
    yield from _item("architecture", f"{architecture['name']}, task {architecture['task']}")
    yield from _item("layers", f"{layers or 'unknown'} layers, {heads or 'unknown'} heads, vocabulary {words}")
    for name, spec in architecture["attention"].items():
        yield from _item(name.replace("_attention", "").replace("_", " "), spec)
    yield from _item("trained", f"{training['updates']} updates, seed {training['seed']}, {training['optimizer']}")
    losses = [training[name] for name in ("valid_loss", "best_valid_loss")]
    if losses[0] is not None:
        best = "" if losses[1] is None else f" (best so far {losses[1]:.4g})"
        yield from _item("valid loss", f"{losses[0]:.4g}{best}, epoch {training['epoch']}")
    yield from _item("data", str(training["data"]))


def _item(name: str, text: str) -> List[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"  {name:<13}", subsequent_indent=" " * 15, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _components(found: Dict[str, Any]) -> Iterator[str]:
    rows = found["components"]
    total, trainable = (sum(row[name] for row in rows) for name in ("parameters", "trainable"))
    yield ""
    yield f"  {'component':<18}{'parameters':>14}{'share':>8}{'trainable':>14}{'trainable %':>13}"
    for row in [*rows, {"component": "all", "parameters": total, "trainable": trainable}]:
        count, trains = row["parameters"], row["trainable"]
        yield (
            f"  {row['component'].replace('_', ' '):<18}{count:>14,}{count / total:>8.1%}{trains:>14,}"
            f"{100 * trains / max(1, count):>13.1f}"
        )


def _all(found: Dict[str, Any]) -> Iterator[str]:
    width = max(len(row["name"]) for row in found["parameters"])
    yield ""
    for row in found["parameters"]:
        shape = " x ".join(map(str, row["shape"]))
        tied = "".join(f"  = {name}" for name in row["also"])
        yield f"  {row['name']:<{width}}  {shape:<16} {'' if row['trainable'] else 'frozen'}{tied}".rstrip()


def _spans(found: Dict[str, Any]) -> Iterator[str]:
    for group, layers in _groups(found["spans"]).items():
        every = [tokens for layer in layers for tokens in layer["tokens"]]
        kind = "learned" if layers[0]["learned"] else "fixed"
        yield ""
        yield f"  spans of the {group}, in tokens ({kind}; limit {layers[0]['limit']:,}, ramp {layers[0]['ramp']})"
        for layer in layers:
            yield from _numbers(f"layer {layer['layer']}", 10, [f"{tokens:9,.1f}" for tokens in layer["tokens"]])
        yield f"    mean {sum(every) / len(every):,.1f}, longest {max(every):,.1f}"


def _mixtures(found: Dict[str, Any]) -> Iterator[str]:
    for group, layers in _groups(found["mixtures"]).items():
        yield ""
        yield f"  mixture weights of the {group}, head by head"
        for layer in layers:
            for scorer, weights in layer["weights"].items():
                label = f"layer {layer['layer']:<2} {scorer}"
                yield from _numbers(label, 27, [f"{weight:6.2f}" for weight in weights])


def _groups(found: List[Dict[str, Any]]) -> Dict[str, List[Dict[str, Any]]]:
    groups: Dict[str, List[Dict[str, Any]]] = {}
    for item in found:
        groups.setdefault(f"{item['side']}'s {item['kind']}-attention", []).append(item)
    return groups


def _numbers(label: str, indent: int, columns: List[str]) -> Iterator[str]:
    """In as many lines as it takes."""
    fit = (WIDTH - 4 - indent) // len(columns[0])
    for start in range(0, len(columns), fit):
        yield f"    {'' if start else label:<{indent}}{''.join(columns[start : start + fit])}"


def _frozen(found: Dict[str, Any]) -> Iterator[str]:
    frozen = found["frozen"]
    if frozen is None:
        return
    yield ""
    yield f"  frozen: {len(frozen['names'])} tensors (--freeze {frozen['freeze']})"
    for name, value in frozen.items():
        if name not in ("names", "freeze") and isinstance(value, (str, int)):
            yield from _item(name.replace("_", " "), str(value))
