"""Attention with adaptive spans, forward and backward: this package beside fairseq's examples/adaptive_span.

    python examples/benchmark/span_attention.py [--batch 1] [--repeat 5] [--dropout 0]

Twelve layers with spans as published for enwik8 (8 layers whose heads look back 100 tokens or less; 4 layers with
one head at 4,000 and the others at 250 or less), S = 8192, blocks of 512, 8 heads of 64, full memories. Both sides
run in this process on one thread, in turn, layer by layer; times are medians of process time.

    core        queries, keys and values to outputs, as in the port's SeqAttention
    sublayer    with the projections and the joining of memory and block, as in its MultiHeadSeqAttention

Memory is what the forward and backward of 12 layers add at their peak, each side in a process of its own. Last, the
time of a sublayer of mean span 256 while the maximum span grows from 1k to 8k. The malloc settings below spare both
sides the page faults of large temporary tensors; without them the port is about twice as slow.
"""

import argparse
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
if any(os.environ.get(k) != v for k, v in SETTINGS.items()) and "--memory" not in sys.argv:
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})  # malloc reads them at start
logging.disable(logging.INFO)

import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fairseq_synth.modules.adaptive_span import AdaptiveSpan  # noqa: E402
from fairseq_synth.modules.banded_attention import banded_attention  # noqa: E402
from fairseq_synth.modules.span_attention import SpanAttention  # noqa: E402

torch.set_num_threads(1)

HEADS, SIZE, BLOCK, MAX_SPAN = 8, 64, 512, 8192
SHORT, LONG = [0, 5, 10, 20, 40, 60, 80, 100], [4000, 20, 50, 80, 120, 160, 200, 250]
LAYERS = [("all heads <= 100", SHORT, 8), ("one head at 4,000", LONG, 4)]


class Ours:
    """One layer; the memory holds what the farthest-looking head can reach."""

    def __init__(self, spans, batch, dropout=0.0, max_span=MAX_SPAN):
        span = AdaptiveSpan(HEADS, max_span)
        span.span_ratio.data = torch.tensor(spans) / max_span
        self.attention = SpanAttention(HEADS * SIZE, HEADS, span, dropout)
        reach, groups = self.attention.reach, span.groups()
        self.x = torch.randn(BLOCK, batch, HEADS * SIZE, requires_grad=True)
        self.past = torch.randn(reach, batch, HEADS * SIZE)
        self.positions = torch.randn(reach, SIZE, requires_grad=True)
        self.inputs = [self._inputs(len(group.heads) * batch, group.window) for group in groups]
        self.masks = [self._mask(group) for group in groups]

    @staticmethod
    def _inputs(rows, window):
        lengths = (BLOCK, window + BLOCK - 1, window + BLOCK - 1)
        return [torch.randn(n, rows, SIZE, requires_grad=True) for n in lengths]

    def _mask(self, group):
        span = self.attention.span
        nearest = int(span.spans()[list(group.heads)].min())
        return lambda: span.log_mask(torch.arange(group.window - 1, nearest - 1, -1))[list(group.heads)]

    def sublayer(self):
        return self.attention(self.x, self.positions, self.past)

    def core(self):
        dropout, outputs = self.attention.dropout, []
        for inputs, mask in zip(self.inputs, self.masks):
            query, key, value = (t.transpose(0, 1) for t in inputs)
            positions = self.positions[: key.size(1) - BLOCK + 1].flip(0)
            outputs.append(banded_attention(query, key, value, positions, mask(), dropout=dropout).flatten())
        return torch.cat(outputs)


class Port:
    """The same layer in fairseq's example; its memory has the size it asks for."""

    def __init__(self, spans, batch, dropout=0.0):
        from fairseq.examples.adaptive_span.adaptive_span_model import MultiHeadSeqAttention

        self.attention = MultiHeadSeqAttention(
            HEADS * SIZE, HEADS, attn_span=MAX_SPAN, dropout=dropout, adapt_span_layer=False, adapt_span_ramp=32,
            adapt_span_init=0.0,
        )  # fmt: skip
        self.attention.attn.adaptive_span._mask.current_val.data = (torch.tensor(spans) / MAX_SPAN).view(HEADS, 1, 1)
        cache = self.attention.attn.get_cache_size()
        self.x = torch.randn(batch, BLOCK, HEADS * SIZE, requires_grad=True)
        self.past = torch.randn(batch, cache, HEADS * SIZE)
        self.positions = torch.randn(1, SIZE, MAX_SPAN, requires_grad=True)
        rows = batch * HEADS
        self.inputs = [torch.randn(rows, n, SIZE, requires_grad=True) for n in (BLOCK, cache + BLOCK, cache + BLOCK)]

    def sublayer(self):
        states = torch.cat([self.past, self.x], dim=1)
        return self.attention(self.x, states, states, self.positions)

    def core(self):
        return self.attention.attn(*self.inputs, self.positions)


def seconds(run):
    start = time.process_time()
    run().sum().backward()
    return time.process_time() - start


def medians(runs, repeat):
    """In turn, after one round that does not count."""
    times = [[seconds(run) for run in runs] for _ in range(repeat + 1)][1:]
    return [statistics.median(column) for column in zip(*times)]


def compare(part, args):
    total = [0.0, 0.0]
    for name, spans, count in LAYERS:
        sides = [side(spans, args.batch, args.dropout) for side in (Ours, Port)]
        ours, port = medians([getattr(side, part) for side in sides], args.repeat)
        total = [total[0] + count * ours, total[1] + count * port]
        print(
            f"{part:9} {name:18} x {count}: ours {ours * 1e3:7.1f} ms, port {port * 1e3:7.1f} ms, {port / ours:5.2f}x"
        )
    print(f"{part:9} {'12 layers':22}: ours {total[0] * 1e3:7.1f} ms, port {total[1] * 1e3:7.1f} ms, "
          f"{total[1] / total[0]:5.2f}x", flush=True)  # fmt: skip


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak(side, part, batch):
    """MiB that one forward and backward of all layers adds, sampled every millisecond."""
    layers = [side(spans, batch) for _, spans, count in LAYERS for _ in range(count)]
    getattr(side([0] * HEADS, batch), part)().sum().backward()  # the libraries' own memory
    before = highest = resident()
    done = threading.Event()

    def watch():
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    torch.stack([getattr(layer, part)().sum() for layer in layers]).sum().backward()
    done.set()
    watcher.join()
    return highest - before


def compare_memory(part, batch):
    found = []
    for side in ("Ours", "Port"):
        command = [sys.executable, __file__, "--memory", side, part, "--batch", str(batch)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found.append(float(output.split()[-1]))
    print(f"{part:9} peak memory: ours {found[0]:.0f} MiB, port {found[1]:.0f} MiB, {found[0] / found[1]:.2f} of it")


def growth(args):
    """Heads of all lengths, mean span 256."""
    sizes = (1024, 2048, 4096, 8192)
    spans = [900, 500, 300, 200, 100, 32, 16, 0]
    layers = [Ours(spans, args.batch, args.dropout, max_span=size) for size in sizes]
    times = medians([layer.sublayer for layer in layers], 3 * args.repeat)
    row = ", ".join(f"{size}: {t * 1e3:.1f} ms" for size, t in zip(sizes, times))
    print(f"mean span 256, maximum span {row}; largest / smallest {max(times) / min(times):.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "PART"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(peak(globals()[args.memory[0]], args.memory[1], args.batch))
        return
    for part in ("core", "sublayer"):
        compare(part, args)
        compare_memory(part, args.batch)
    growth(args)


if __name__ == "__main__":
    main()
