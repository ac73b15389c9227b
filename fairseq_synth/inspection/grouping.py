"""Runs as rows of a table: one per run, or one for all runs that differ in nothing but the seed."""

import math
import os
import statistics
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from fairseq_synth.errors import UsageError
from fairseq_synth.inspection.evaluations import Evaluation
from fairseq_synth.inspection.logs import Run, bits, is_language_model, minutes, perplexity, words_per_second

# options that do not change what is learned, or are derived from the seed
NOT_SETTINGS = frozenset(
    "seed save_dir restore_file tensorboard_logdir log_file log_interval log_format no_progress_bar num_workers "
    "user_dir wandb_project aim_repo aim_run_hash azureml_logging results_path plasma_path distributed_init_method "
    "distributed_port device_id distributed_rank suppress_crashes no_seed_provided keep_last_epochs "
    "keep_interval_updates keep_best_checkpoints no_epoch_checkpoints no_last_checkpoints save_interval "
    "save_interval_updates data_buffer_size".split()
)

P_VALUE = "p"  # the metric of a significance test

# columns that any training can have; a short one may lack them
ALWAYS = ("parameters", "trainable", "updates", "minutes", "words/s", "valid ppl")


class Measured(NamedTuple):
    """A run and what was evaluated of it."""

    run: Run
    evaluations: List[Evaluation]


class Value(NamedTuple):
    """Mean over the runs of a row that have it; spread: sample standard deviation, None for a single run."""

    mean: float
    spread: Optional[float] = None
    runs: int = 1


class Row(NamedTuple):
    """values: column -> Value; missing where no run has it."""

    name: str
    seeds: List[str]
    members: List[Measured]
    values: Dict[str, Value]


def settings(run: Run) -> Dict[str, str]:
    return {name: value for name, value in run.options.items() if name not in NOT_SETTINGS}


def rows(measured: Sequence[Measured], each: bool = False) -> List[Row]:
    """each: no grouping. Runs without a known configuration stay alone. Order: that of the arguments."""
    groups: List[List[Measured]] = []
    for one in measured:
        same = [group for group in groups if not each and one.run.options and _alike(group, one)]
        if same:
            same[0].append(one)
        else:
            groups.append([one])
    names = _names([[m.run.path for m in group] for group in groups])
    return [_row(name, group) for name, group in zip(names, groups)]


def _alike(group: List[Measured], one: Measured) -> bool:
    """Equal to these but for the seed."""
    first = group[0].run
    seeds = [m.run.options.get("seed") for m in group]
    equal = settings(first) == settings(one.run) and first.updates == one.run.updates
    return equal and one.run.options.get("seed") not in seeds


def _row(name: str, group: List[Measured]) -> Row:
    values: Dict[str, Value] = {}
    numbers = [columns(m) for m in group]
    for column in dict.fromkeys(column for found in numbers for column in found):
        found = [n[column] for n in numbers if column in n]
        if column.split()[0] == P_VALUE:  # a mean of these means nothing: the weakest claim
            values[column] = Value(max(found), None, len(found))
            continue
        mean, spread = statistics.fmean(found) if all(map(math.isfinite, found)) else math.nan, None
        if len(found) > 1:
            spread = statistics.stdev(found) if math.isfinite(mean) else math.nan
        values[column] = Value(found[0] if len(found) == 1 else mean, spread, len(found))
    return Row(name, [m.run.options.get("seed", "?") for m in group], group, values)


def columns(measured: Measured) -> Dict[str, float]:
    """The numbers of one run. Perplexity and bits per token are those of its last validation."""
    run = measured.run
    last = run.valid[-1] if run.valid else {}
    found: Dict[str, Any] = {"parameters": run.parameters, "trainable": run.trainable, "updates": run.updates}
    found["minutes"] = minutes(run)
    found["words/s"] = words_per_second(run)
    found["valid ppl"] = perplexity(last)
    if is_language_model(run):
        found["valid bits"] = bits(last)
    for evaluation in measured.evaluations:
        label = f" {evaluation.label}" if evaluation.label else ""
        found.update({score.metric + label: score.value for score in evaluation.scores})
        found["ppl" + (label or " eval-lm")] = evaluation.perplexity
        found["bits" + (label or " eval-lm")] = evaluation.bits
    return {column: float(value) for column, value in found.items() if value is not None}


def without(found: Sequence[Row], columns: Sequence[str]) -> List[Row]:
    """The rows without these columns. Raises UsageError for one that no training has."""
    known = list(dict.fromkeys([*ALWAYS, *(column for row in found for column in row.values)]))
    for column in columns:
        if column not in known:
            raise UsageError(f"--hide {column}: no such column; there are {', '.join(known)}")
    return [row._replace(values={c: v for c, v in row.values.items() if c not in columns}) for row in found]


def _names(groups: List[List[str]]) -> List[str]:
    """Short and different: the last parts of the folders, as many as it takes."""
    longest = max(len(os.path.abspath(path).split(os.sep)) for group in groups for path in group)
    for parts in range(1, longest + 1):
        names = [_common([os.sep.join(os.path.abspath(p).split(os.sep)[-parts:]) for p in group]) for group in groups]
        if len(set(names)) == len(names):
            return names
    return [group[0] for group in groups]


def _common(names: List[str]) -> str:
    """adaptive-1 and adaptive-2 are adaptive; run1/random and run2/random are random."""
    if len(set(names)) == 1:
        return names[0]
    tails = {name.rpartition(os.sep)[2] for name in names}
    if len(tails) == 1:
        return tails.pop()
    prefix = os.path.commonprefix([name.rpartition(os.sep)[2] for name in names])
    for ending in ("seed", "run"):
        prefix = prefix.rstrip("-_. 0123456789")
        prefix = prefix[: -len(ending)] if prefix.endswith(ending) else prefix
    return prefix.rstrip("-_. ") or names[0]


def differing(found: Sequence[Row]) -> Dict[str, List[str]]:
    """Options that all runs have and that are not the same in all: option -> value of every row."""
    options = [settings(row.members[0].run) for row in found]
    shared = [name for name in options[0] if all(name in other for other in options)]
    table = {name: [other[name] for other in options] for name in sorted(shared)}
    return {name: values for name, values in table.items() if len({_plain(v) for v in values}) > 1}


def _plain(value: str) -> str:
    """0 and 0.0 are the same."""
    try:
        return str(float(value))
    except ValueError:
        return value
