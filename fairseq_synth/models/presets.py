"""Architectures: a model under several names, each with defaults of its own."""

import dataclasses
from dataclasses import field
from typing import Any, Dict, List, Mapping, NamedTuple, Type

from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from hydra.core.config_store import ConfigStore

from fairseq_synth.models.options import HOLDERS
from fairseq_synth.modules.scorers.base import LISTENERS


class Preset(NamedTuple):
    """base: the model; changes: what differs from its defaults; options: the architecture's own dataclass."""

    base: Any
    changes: Dict[str, Any]
    options: Type[FairseqDataclass]


PRESETS: Dict[str, Preset] = {}  # --arch -> what it is, of every model of this package


def with_defaults(class_name: str, base: Type[FairseqDataclass], defaults: Mapping[str, Any]) -> Type[FairseqDataclass]:
    """``base`` with other defaults: a named architecture that behaves alike on every command and in yaml."""
    known = {f.name: f for f in dataclasses.fields(base)}
    changed = [
        (name, known[name].type, field(default=value, metadata=dict(known[name].metadata)))
        for name, value in defaults.items()
    ]
    return dataclasses.make_dataclass(class_name, changed, bases=(base,), namespace={"__module__": __name__})


def register_presets(base: Any, presets: Mapping[str, Dict[str, Any]]) -> None:
    """Register architectures: the model ``base`` (whose ``defaults`` is its dataclass) with other defaults."""
    prefix = next((prefix for holder, prefix in HOLDERS if issubclass(base.defaults, holder)), None)
    for name, changes in presets.items():
        class_name = "".join(part.capitalize() for part in name.split("_"))
        defaults = with_defaults(class_name + "Config", base.defaults, changes)
        if prefix is not None:
            HOLDERS.append((defaults, prefix))
        model = type(class_name, (base,), {"defaults": defaults, "__module__": base.__module__})
        register_model(name, dataclass=defaults)(model)
        PRESETS[name] = Preset(base, dict(changes), defaults)


def _tell_hydra(fields: List[dataclasses.Field]) -> None:
    """Its store keeps copies of the dataclasses; they lack the options of a scorer that was registered later."""
    for name, preset in PRESETS.items() if fields else ():
        node = preset.options()
        node._name = name
        ConfigStore.instance().store(name=name, group="model", node=node, provider="fairseq")


LISTENERS.append(_tell_hydra)
