"""Section 4b: attention with adaptive spans, forward and backward, beside fairseq's examples/adaptive_span.

Twelve layers with spans as published for enwik8 (8 layers whose heads look back 100 tokens or less; 4 layers with
one head at 4,000 and the others at 250 or less), S = 8192, blocks of 512, 8 heads of 64, full memories, one stream,
float32.

    core        queries, keys and values to outputs, as in the port's SeqAttention
    sublayer    with the projections and the joining of memory and block, as in its MultiHeadSeqAttention

Memory is what the forward and backward of 12 layers add at their peak, each side in a process of its own, without
the malloc settings, under which nothing is given back. Last, the time of a sublayer of mean span 256 while the
maximum span grows from 1k to 8k.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
from common import Column, Results, Section, Settings, combine, race  # noqa: E402

from fairseq_synth.modules.adaptive_span import AdaptiveSpan  # noqa: E402
from fairseq_synth.modules.span_attention import SpanAttention  # noqa: E402
from fairseq_synth.modules.weighted_sum.banded import banded_attention  # noqa: E402

HEADS, SIZE, BLOCK, MAX_SPAN, BATCH = 8, 64, 512, 8192, 1
SHORT, LONG = [0, 5, 10, 20, 40, 60, 80, 100], [4000, 20, 50, 80, 120, 160, 200, 250]
LAYERS = [("all heads <= 100", SHORT, 8), ("one head at 4,000", LONG, 4)]
GROWING, MEAN_256 = (1024, 2048, 4096, 8192), [900, 500, 300, 200, 100, 32, 16, 0]
PARTS = {"mini": (), "small": ("core",), "full": ("core", "sublayer")}
PORT, OURS = "fairseq's port", "ours"


class Ours:
    """One layer; the memory holds what the farthest-looking head can reach."""

    def __init__(self, spans: Sequence[float], max_span: int = MAX_SPAN, batch: int = BATCH) -> None:
        span = AdaptiveSpan(HEADS, max_span)
        span.span_ratio.data = torch.tensor(spans) / max_span
        self.attention = SpanAttention(HEADS * SIZE, HEADS, span)
        reach, groups = self.attention.reach, span.groups()
        self.x = torch.randn(BLOCK, batch, HEADS * SIZE, requires_grad=True)
        self.past = torch.randn(reach, batch, HEADS * SIZE)
        self.positions = torch.randn(reach, SIZE, requires_grad=True)
        self.inputs = [self._inputs(len(group.heads) * batch, group.window) for group in groups]
        self.masks = [self._mask(group) for group in groups]

    @staticmethod
    def _inputs(rows: int, window: int) -> List[Tensor]:
        lengths = (BLOCK, window + BLOCK - 1, window + BLOCK - 1)
        return [torch.randn(n, rows, SIZE, requires_grad=True) for n in lengths]

    def _mask(self, group: Any) -> Callable[[], Tensor]:
        span = self.attention.span
        nearest = int(span.spans()[list(group.heads)].min())
        return lambda: span.log_mask(torch.arange(group.window - 1, nearest - 1, -1))[list(group.heads)]

    def sublayer(self) -> Tensor:
        return self.attention(self.x, self.positions, self.past)

    def core(self) -> Tensor:
        outputs = []
        for inputs, mask in zip(self.inputs, self.masks):
            query, key, value = (t.transpose(0, 1) for t in inputs)
            positions = self.positions[: key.size(1) - BLOCK + 1].flip(0)
            outputs.append(banded_attention(query, key, value, positions, mask()).flatten())
        return torch.cat(outputs)


class Port:
    """The same layer in fairseq's example; its memory has the size it asks for."""

    def __init__(self, spans: Sequence[float], batch: int = BATCH) -> None:
        from fairseq.examples.adaptive_span.adaptive_span_model import MultiHeadSeqAttention

        self.attention = MultiHeadSeqAttention(
            HEADS * SIZE, HEADS, attn_span=MAX_SPAN, dropout=0.0, adapt_span_layer=False, adapt_span_ramp=32,
            adapt_span_init=0.0,
        )  # fmt: skip
        self.attention.attn.adaptive_span._mask.current_val.data = (torch.tensor(spans) / MAX_SPAN).view(HEADS, 1, 1)
        cache = self.attention.attn.get_cache_size()
        self.x = torch.randn(batch, BLOCK, HEADS * SIZE, requires_grad=True)
        self.past = torch.randn(batch, cache, HEADS * SIZE)
        self.positions = torch.randn(1, SIZE, MAX_SPAN, requires_grad=True)
        rows = batch * HEADS
        self.inputs = [torch.randn(rows, n, SIZE, requires_grad=True) for n in (BLOCK, cache + BLOCK, cache + BLOCK)]

    def sublayer(self) -> Tensor:
        states = torch.cat([self.past, self.x], dim=1)
        return self.attention(self.x, states, states, self.positions)

    def core(self) -> Tensor:
        return self.attention.attn(*self.inputs, self.positions)


def backward(run: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: run().sum().backward()


def run(settings: Settings) -> Iterator[Results]:
    if settings.device != "cpu" or settings.dtype != torch.float32:
        yield {"case": "core", "name": "all", "skipped": "skipped: measured on the CPU in float32 only"}
        return
    for part in PARTS[settings.size]:
        if settings.wants(part):
            yield from compare(part, settings)
    if settings.size != "small" and settings.wants("maximum span"):
        yield from growth(settings)


def compare(part: str, settings: Settings) -> Iterator[Results]:
    """Each kind of layer, then all twelve: their times added up round by round."""
    total: Dict[str, List[List[float]]] = {PORT: [], OURS: []}
    for name, spans, count in LAYERS:
        sides: Dict[str, Any] = {PORT: Port(spans), OURS: Ours(spans)}
        for result in race({k: backward(getattr(v, part)) for k, v in sides.items()}, settings):
            total[result["name"]] += [result["times"]] * count
            case = f"{part}: {name}"
            yield {"case": case, "group": case, **result}
    times = {name: [sum(turn) for turn in zip(*found)] for name, found in total.items()}
    for result in combine(times):
        peak = peak_in_own_process(result["name"], part)
        yield {"case": f"{part}: 12 layers", "group": f"{part}: 12 layers", "peak_bytes": peak, **result}


def growth(settings: Settings) -> Iterator[Results]:
    """Heads of all lengths, mean span 256."""
    layers = {f"S = {size}": Ours(MEAN_256, size) for size in GROWING[: 2 if settings.size == "mini" else None]}
    for result in race({name: backward(layer.sublayer) for name, layer in layers.items()}, settings):
        yield {"case": "maximum span, mean 256", "group": "maximum span", **result}


# ---------------------------------------------------------------------- memory
def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(side: Callable[..., Any], part: str) -> int:
    """Bytes that one forward and backward of all layers adds, sampled every millisecond."""
    layers = [side(spans) for _, spans, count in LAYERS for _ in range(count)]
    getattr(side([0] * HEADS), part)().sum().backward()  # the libraries' own memory
    before = highest = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    torch.stack([getattr(layer, part)().sum() for layer in layers]).sum().backward()
    done.set()
    watcher.join()
    return highest - before


def peak_in_own_process(name: str, part: str) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, __file__, name, part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name}, {part}, failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


SECTION = Section(
    "span_attention",
    "Adaptive spans, forward and backward (as published for enwik8, S = 8192)",
    "core: the attention alone; sublayer: with projections. ratio: speed against the\nfirst of a case.",
    (Column("ms", "seconds", scale=1e3), Column("peak MB", "peak_bytes", "{:.0f}", 1e-6)),
    run,
    {"heads": HEADS, "head_dim": SIZE, "block": BLOCK, "batch": BATCH, "spans": {n: s for n, s, _ in LAYERS}},
)

if __name__ == "__main__":  # what peak_in_own_process starts
    import logging

    logging.disable(logging.INFO)
    print(peak(Port if sys.argv[1] == PORT else Ours, sys.argv[2]))
