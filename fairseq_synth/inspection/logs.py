"""fairseq-train's log: settings, sizes and numbers, from --log-format json, simple and tqdm alike."""

import json
import math
import os
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from fairseq_synth.errors import UsageError

Numbers = Dict[str, float]
LOG = "train.log"
ABOUT = "run.json"  # beside it: command, versions, hardware, as whoever started the run wrote them
# fairseq's port of adaptive span divides nll_loss by the number of tokens twice, and its loss by tokens that it does
# not predict: the last one of every block
PORT_LOSS = "adaptive_span_loss"

# of fairseq-train, and of fairseq-hydra-train
_RECORD = re.compile(r"(?:\| INFO \| (\w+) \| |\]\[(\w+)\]\[INFO\] - )(?=\{\"|epoch )(.*)")
_PAIR = re.compile(r"(?:^|[\s,|:])([a-z]\w*)[= ](-?[\d.]+(?:e[-+]?\d+)?|inf|nan)(?=[\s,|]|$)")
_OPTION = re.compile(
    r"(?:'(\w+)': |\b(\w+)=)('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\[[^\]]*\]|\([^)]*\)|<[^>]*>|[^\s,{}()\[\]'\"]+)"
)
_SIZE = re.compile(r"num\. shared model params: (\d[\d,]{,30}) \(num\. trained: (\d[\d,]{,30})\)")
LONGEST = 2**20  # characters of a line


class Run(NamedTuple):
    """One training. options: as text, by name. steps, valid: records in the order of the updates, each with
    num_updates; where a training was resumed, the later record of an update counts. about: what the run's ABOUT says;
    speed: words per second where the steps are too few to tell."""

    path: str
    options: Dict[str, str]
    parameters: Optional[int]
    trainable: Optional[int]
    steps: List[Numbers]
    valid: List[Numbers]
    about: Dict[str, Any] = {}
    speed: Optional[float] = None

    @property
    def updates(self) -> int:
        return int(max((r["num_updates"] for r in [*self.steps, *self.valid]), default=0))


def find_log(folder: str) -> str:
    """The log in a run's folder, or the file itself. Raises UsageError."""
    if os.path.isfile(folder):
        return folder
    if not os.path.isdir(folder):
        raise UsageError(f"{folder}: no such folder; give the folder of a training with its {LOG}")
    names = (name for name in os.listdir(folder) if name.endswith(".log"))
    logs = sorted(name for name in names if os.path.isfile(os.path.join(folder, name)))  # no pipes, which never end
    chosen = [LOG] if LOG in logs else [name for name in logs if _is_training(os.path.join(folder, name))]
    if len(chosen) != 1:
        found = "several training logs: " + ", ".join(chosen) if chosen else "no training log"
        raise UsageError(
            f"{folder}: {found}; give the file itself, or keep what fairseq-train prints (fairseq-train ... 2>&1 | tee "
            f"{os.path.join(folder, LOG)})"
        )
    return os.path.join(folder, chosen[0])


def _is_training(path: str) -> bool:
    return any("num. shared model params" in line for _, line in zip(range(2000), lines(path)))


def lines(path: str) -> Iterator[str]:
    """Of a text file, those that are too long for a log in pieces. Raises UsageError where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            while True:
                line = file.readline(LONGEST)
                if not line:
                    return
                yield line
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def read_run(folder: str) -> Run:
    """Raises UsageError for a folder without a log, and for a log that tells of no training."""
    path = find_log(folder)
    options: Dict[str, str] = {}
    sizes: Tuple[Optional[int], Optional[int]] = (None, None)
    records: Dict[str, Dict[int, Numbers]] = {}
    for line in lines(path):
        kind, numbers = record(line)
        if "num_updates" in numbers:
            records.setdefault(kind, {})[int(numbers["num_updates"])] = numbers
        elif "'common': {" in line:
            options = read_options(line)
        else:
            found = _SIZE.search(line)
            sizes = (_count(found.group(1)), _count(found.group(2))) if found else sizes
    records.pop("train", None)  # the mean of an epoch
    steps = records.pop("train_inner", {})
    valid = _first_validation(records, options)
    if sizes[0] is None or not (steps or valid):
        raise UsageError(
            f"{path}: tells of no training; give what fairseq-train prints (2>&1 | tee {LOG}), or its --log-file with "
            f"--log-format json"
        )
    if options.get("criterion") == PORT_LOSS:
        for numbers in [*steps.values(), *valid.values()]:
            numbers.pop("nll_loss", None)
            numbers.pop("ppl", None)
    name = folder if os.path.isdir(folder) else os.path.dirname(folder)
    name = os.path.normpath(name or ".")
    return Run(name, options, *sizes, _ordered(steps), _ordered(valid), read_about(name))


def read_about(folder: str) -> Dict[str, Any]:
    """Empty where there is none, or none that can be read: it is for the reader, no number comes from it."""
    path = os.path.join(folder, ABOUT)
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > LONGEST:
            return {}
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (ValueError, RecursionError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(text: str) -> int:
    return int(text.replace(",", ""))


def _first_validation(records: Dict[str, Dict[int, Numbers]], options: Dict[str, str]) -> Dict[int, Numbers]:
    """Of several validation sets, the one that fairseq chooses the best checkpoint by."""
    first = options.get("valid_subset", "valid").split(",")[0]
    return records.get(first, next(iter(records.values()), {}))


def _ordered(records: Dict[int, Numbers]) -> List[Numbers]:
    return [records[update] for update in sorted(records)]


def record(line: str) -> Tuple[str, Numbers]:
    """(train_inner, train, or the name of a validation set; its numbers without that prefix); empty for other lines,
    and for damaged ones. Losses may be nan or inf, counts of updates are whole numbers."""
    kind, rest = _kind(line)
    pairs = _json_pairs(rest) if rest.startswith("{") else _PAIR.findall(rest)
    numbers: Numbers = {}
    for name, value in pairs:
        if name.startswith(kind + "_"):
            name = name[len(kind) + 1 :]
        try:
            numbers[name] = float(value)
        except (ValueError, OverflowError):
            continue
    updates = numbers.get("num_updates", 0.0)
    return (kind, numbers) if 0 <= updates < 2**53 and updates == int(updates) else ("", {})


def _kind(line: str) -> Tuple[str, str]:
    """What a line reports, and the report; empty for other lines."""
    found = _RECORD.search(line)
    if found:
        return found.group(1) or found.group(2), found.group(3)
    if not line.startswith('{"epoch"'):
        return "", ""
    kind = re.search(r'"(\w+)_num_updates"', line)  # --log-file with --log-format json: nothing before the braces
    return kind.group(1) if kind else "train_inner", line


def _json_pairs(text: str) -> Iterator[Tuple[str, Any]]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # cut off by a full disk or a kill
        return
    yield from ((name, value) for name, value in values.items() if isinstance(value, (str, int, float)))


def read_options(line: str) -> Dict[str, str]:
    """The configuration that fairseq-train prints first: option -> value, as text."""
    options: Dict[str, str] = {}
    for one, other, value in _OPTION.findall(line):
        if value != "Namespace":
            options[one or other] = value.strip("'\"")
    for section, name in re.findall(r"'(model|task|criterion|optimizer|lr_scheduler)': \{'_name': '([^']+)'", line):
        options["arch" if section == "model" else section] = name
    options.pop("_name", None)
    return options


# ---------------------------------------------------------------------- numbers of a run
def words_per_second(run: Run) -> Optional[float]:
    """Target tokens per second of training steps, without validation and saving; the first interval warms up."""
    if run.speed is not None:
        return run.speed
    words = seconds = 0.0
    for before, step in zip(run.steps, run.steps[1:]):
        updates = step["num_updates"] - before["num_updates"]
        if "wpb" in step and "train_wall" in step:
            words += step["wpb"] * updates
            seconds += step["train_wall"]
    return words / seconds if seconds else None


def minutes(run: Run) -> Optional[float]:
    """Of wall time, validation and saving included, over all parts of a training that was resumed."""
    walls = [step["wall"] for step in run.steps if "wall" in step]
    return max(walls) / 60 if walls else None


def bits(numbers: Numbers) -> Optional[float]:
    """Per token, without label smoothing."""
    return numbers.get("nll_loss", numbers.get("loss"))


def perplexity(numbers: Numbers) -> Optional[float]:
    found = bits(numbers)
    if "ppl" in numbers or found is None:
        return numbers.get("ppl")
    return 2.0**found if found < 1024 else math.inf


def is_language_model(run: Run) -> bool:
    return "source_lang" not in run.options and "tokens_per_sample" in run.options
