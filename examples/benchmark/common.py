"""What every section of the benchmark uses: settings, taking turns, ratios, the table.

One measurement is a race: every contender runs once per round, A B C A B C ..., so that a machine that slows down
slows all of them. A contender's time is the median of its rounds; its ratio to the first contender is taken round by
round, and the median and the quartiles of those ratios are what is reported.
"""

import random
import re
import statistics
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch

SIZES = ("mini", "small", "full")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORTEST = 0.005  # seconds: quicker calls are repeated within a turn until they take this long
LONG = 0.5  # seconds: one call of this length is warm-up enough
MOST_ROUNDS, FEWEST_OF_LONG = 101, 3
PATIENCE = 120.0  # seconds: after that, three rounds are enough
WIDTH, NAME = 80, 28  # of a line; of its first column
MODEL = "h100-model"  # the device that gpu_model.py computes for
Results = Dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Options of one run. seconds: roughly what one race may take; rounds: the fewest it has."""

    size: str = "small"
    device: str = "cpu"
    dtype_name: str = "float32"
    threads: int = 1
    seed: int = 1
    seconds: float = 2.0
    rounds: int = 5
    variants: Tuple[str, ...] = ()
    cases: Tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def full(self) -> bool:
        return self.size == "full"

    def wants(self, case: str) -> bool:
        return not self.cases or any(part in case for part in self.cases)

    def seed_all(self) -> None:
        random.seed(self.seed)
        torch.manual_seed(self.seed)

    @property
    def clock_name(self) -> str:
        """Process time is blind to other programs, but adds up threads and does not see a GPU."""
        if self.device == MODEL:
            return "no clock"
        return "process time" if self.device == "cpu" and self.threads == 1 else "wall clock"

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.clock_name == "process time" else time.perf_counter()


def high_water() -> int:
    """Bytes of memory that this process has held at most. (The resource module would count its parent's, too.)"""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 0 if found is None else 1024 * int(found.group(1))


class Column(NamedTuple):
    """A column of a section's table. key: of the result; scale: what the value is multiplied by."""

    title: str
    key: str
    form: str = "{:.2f}"
    scale: float = 1.0


@dataclass(frozen=True)
class Section:
    """title, and notes that explain the figures: printed. run: yields the results of one contender after another.

    options: fixed conditions of the section, for the JSON file.
    """

    name: str
    title: str
    notes: str
    columns: Sequence[Column]
    run: Callable[[Settings], Iterator[Results]]
    options: Dict[str, Any] = field(default_factory=dict)


def race(contenders: Dict[str, Callable[[], Any]], settings: Settings) -> List[Results]:
    """Time the contenders in turns. Returns one result each, with the ratio to the first (above 1: faster)."""
    repeats = {name: _warm_up(run, settings) for name, run in contenders.items()}
    times: Dict[str, List[float]] = {name: [] for name in contenders}
    spent, rounds = 0.0, 0
    while not _enough(rounds, spent, settings):
        for name, run in contenders.items():
            taken = _turn(run, repeats[name], settings)
            times[name].append(taken / repeats[name])
            spent += taken
        rounds += 1
    return combine(times)


def build_each(names: Sequence[str], build: Callable[[str], Any]) -> Tuple[Dict[str, Any], List[Results]]:
    """What can be built, and a result that says why for each name that cannot (a scorer with limits of its own)."""
    from fairseq_synth.errors import UsageError

    built, skipped = {}, []
    for name in names:
        try:
            built[name] = build(name)
        except UsageError as error:
            skipped.append({"name": name, "skipped": f"skipped: {error}"})
    return built, skipped


def combine(times: Dict[str, List[float]]) -> List[Results]:
    """Results from the times of every round, in seconds."""
    first = times[next(iter(times))]
    return [_result(name, taken, first) for name, taken in times.items()]


def _enough(rounds: int, spent: float, settings: Settings) -> bool:
    if rounds < settings.rounds:
        return rounds >= FEWEST_OF_LONG and spent > PATIENCE
    return spent >= settings.seconds or rounds >= MOST_ROUNDS


def _warm_up(run: Callable[[], Any], settings: Settings) -> int:
    """A call or two that do not count; how often to call in a turn."""
    taken = _turn(run, 1, settings)
    if taken < LONG:
        taken = _turn(run, 1, settings)
    return max(1, min(1000, round(SHORTEST / max(taken, 1e-6))))


def _turn(run: Callable[[], Any], repeats: int, settings: Settings) -> float:
    start = settings.now()
    for _ in range(repeats):
        run()
    return settings.now() - start


def _result(name: str, times: Sequence[float], first: Sequence[float]) -> Results:
    ratios = [a / b for a, b in zip(first, times)]
    low, middle, high = quartiles(ratios)
    return {
        "name": name,
        "seconds": statistics.median(times),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
        "rounds": len(times),
        "times": list(times),
    }


def quartiles(values: Sequence[float]) -> Tuple[float, float, float]:
    """Lower quartile, median, upper quartile (the values between, for few of them)."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


# ---------------------------------------------------------------------- table
def print_heading(section: Section) -> None:
    print(f"\n{section.title}\n{'=' * min(WIDTH, len(section.title))}\n{textwrap.fill(section.notes, WIDTH)}")


def print_case(case: str, section: Section) -> None:
    width = _column_width(section)
    titles = "".join(f"{column.title:>{width}}" for column in section.columns)
    first = NAME + width * len(section.columns) - len(titles)
    spread = "" if section.options.get("computed") else " (quartiles)"
    print(f"\n{case:{first}}{titles}{'ratio':>8}{spread}", flush=True)


def _column_width(section: Section) -> int:
    """What 80 columns leave beside the name and the ratio."""
    return min(10, (WIDTH - NAME - 20) // len(section.columns))


def print_result(result: Results, section: Section) -> None:
    if "skipped" in result:
        text = textwrap.wrap(result["skipped"], WIDTH - NAME)
        print(f"  {result['name']:{NAME - 2}}" + f"\n{'':{NAME}}".join(text), flush=True)
        return
    width, (*cells, ratio, spread) = _column_width(section), texts(result, section)
    row = "".join(f"{cell:>{width}}" for cell in cells)
    print(f"  {result['name']:{NAME - 2}}{row}{ratio:>8} {spread}".rstrip(), flush=True)


def texts(result: Results, section: Section) -> List[str]:
    """The cells of a row: the section's columns, ratio, spread."""
    cells = [c.form.format(result[c.key] * c.scale) if c.key in result else "-" for c in section.columns]
    if "ratio" not in result:
        return [*cells, "", ""]
    if result.get("computed"):
        return [*cells, f"{result['ratio']:.2f}x", "computed"]
    return [*cells, f"{result['ratio']:.2f}x", f"({result['ratio_low']:.2f}-{result['ratio_high']:.2f})"]


def print_means(results: Sequence[Results]) -> None:
    """Geometric mean of every contender's ratios over the cases of a group, where there are several."""
    ratios: Dict[str, Dict[str, List[float]]] = {}
    for result in results:
        if "ratio" in result:
            ratios.setdefault(result.get("group", "all"), {}).setdefault(result["name"], []).append(result["ratio"])
    for group, found in ratios.items():
        if all(len(column) > 1 for column in found.values()):
            print(f"\n{group + ' cases: ratio':{NAME}}{'mean':>10}{'lowest':>10}{'highest':>10}")
            for name, column in found.items():
                cells = (statistics.geometric_mean(column), min(column), max(column))
                print(f"  {name:{NAME - 2}}" + "".join(f"{cell:9.2f}x" for cell in cells), flush=True)
