"""Everything that ``fairseq-synth inspect`` tells of a checkpoint, as plain types."""

from typing import Any, Dict, List, Optional

from torch import nn

from fairseq_synth.freezing import record as records
from fairseq_synth.freezing.groups import components, ordered, tied_names
from fairseq_synth.freezing.report import counts
from fairseq_synth.inspection import findings
from fairseq_synth.inspection.loading import Opened
from fairseq_synth.modules.places import place_of

SPECS = ("encoder_self_attention", "decoder_self_attention", "cross_attention")


def summary(opened: Opened) -> Dict[str, Any]:
    """Plain types only, for JSON. A parameter that has several names (tied) counts once, under the first."""
    return {
        "checkpoint": opened.path,
        "architecture": _architecture(opened),
        "training": _training(opened),
        "components": _components(opened.model),
        "parameters": _parameters(opened.model),
        "spans": [_spans(s) for s in findings.spans(opened.model)],
        "mixtures": [_mixture(m) for m in findings.mixtures(opened.model)],
        "frozen": _frozen(opened),
    }


def _architecture(opened: Opened) -> Dict[str, Any]:
    found = (place_of(name) for name, _ in opened.model.named_modules())
    places = {place for place in found if place is not None}
    layers = {
        side: 1 + max(p.layer for p in places if p.side == side)
        for side in sorted({p.side for p in places}, reverse=True)
    }
    heads = [m.num_heads for m in opened.model.modules() if hasattr(m, "num_heads")]
    specs = {
        name: getattr(opened.cfg.model, name, None) for name in SPECS if name[:7] != "encoder" or "encoder" in layers
    }
    return {
        "name": opened.arch,
        "task": str(getattr(opened.cfg.task, "_name", None) or getattr(opened.cfg.task, "task", None)),
        "layers": layers,
        "heads": sorted(set(heads)),
        "vocabulary": sorted({len(opened.source), len(opened.target)}),
        "attention": {name: str(value) for name, value in specs.items() if value is not None},
    }


def _training(opened: Opened) -> Dict[str, Any]:
    """None for what the checkpoint does not say (an average keeps what its last input said)."""
    history = opened.state.get("optimizer_history") or [{}]
    extra = opened.state.get("extra_state") or {}
    common, task = opened.cfg.common, opened.cfg.task
    return {
        "updates": history[-1].get("num_updates"),
        "epoch": (extra.get("train_iterator") or {}).get("epoch"),
        "valid_loss": extra.get("val_loss"),
        "best_valid_loss": extra.get("best"),
        "criterion": history[-1].get("criterion_name"),
        "optimizer": history[-1].get("optimizer_name"),
        "seed": getattr(common, "seed", None),
        "data": getattr(task, "data", None),
    }


def _components(model: nn.Module) -> List[Dict[str, Any]]:
    found = counts(model)
    return [
        {"component": name, "parameters": found[name][0], "trainable": found[name][0] - found[name][1]}
        for name in ordered(set(found))
    ]


def _parameters(model: nn.Module) -> List[Dict[str, Any]]:
    kinds, parameters = components(model), dict(model.named_parameters())
    return [
        {
            "name": name,
            "component": kinds[name],
            "shape": list(parameters[name].shape),
            "trainable": parameters[name].requires_grad,
            "also": list(aliases),
        }
        for name, *aliases in tied_names(model)
    ]


def _spans(found: findings.Spans) -> Dict[str, Any]:
    return {**found.place._asdict(), "tokens": found.tokens, "limit": found.longest, "ramp": found.ramp,
            "learned": found.learned}  # fmt: skip


def _mixture(found: findings.MixtureWeights) -> Dict[str, Any]:
    return {**found.place._asdict(), "weights": dict(zip(found.scorers, found.weights))}


def _frozen(opened: Opened) -> Optional[Dict[str, Any]]:
    """The record that --freeze leaves in the checkpoint, the seed of --frozen-init and what of it the file holds;
    None without --freeze."""
    record = records.decode(opened.state["model"].get(records.KEY))
    if record is None:
        return None
    stored = opened.state["stored_seed"]
    seed = getattr(opened.cfg.model, "frozen_init", None) if stored is None else stored
    return {**record, "seed": seed, "stored": "tensors" if stored is None else "seed, drawn and verified"}
