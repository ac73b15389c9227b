"""The table of what is frozen, for the log: at most 80 columns."""

from typing import Dict, List

from torch import nn

from fairseq_synth.freezing.groups import components, ordered, tied_names

HEADER = f"  {'component':<18}{'parameters':>14}{'frozen':>14}{'trainable %':>13}"


def counts(model: nn.Module) -> Dict[str, List[int]]:
    """component -> [parameters, of these frozen]; a shared tensor counts where its first name belongs."""
    kinds, parameters = components(model), dict(model.named_parameters())
    found: Dict[str, List[int]] = {}
    for name, *_ in tied_names(model):
        row = found.setdefault(kinds[name], [0, 0])
        size = parameters[name].numel()
        row[0] += size
        row[1] += 0 if parameters[name].requires_grad else size
    return found


def table(model: nn.Module) -> str:
    found = counts(model)
    lines = [HEADER]
    lines += [_row(component, *found[component]) for component in ordered(set(found))]
    return "\n".join([*lines, _row("all", *_sums(found))])


def _sums(found: Dict[str, List[int]]) -> List[int]:
    return [sum(column) for column in zip(*found.values())]


def _row(name: str, total: int, frozen: int) -> str:
    share = 100 * (total - frozen) / total if total else 100.0
    return f"  {name.replace('_', ' '):<18}{total:>14,}{frozen:>14,}{share:>13.1f}"
