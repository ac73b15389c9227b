"""Frozen matrices held in memory, or drawn from their seed while multiplying: time, memory, and whether bits agree.

    python examples/benchmark/seeded_linear.py

First a feed-forward sublayer (two matrices), then a whole Transformer (base) with frozen attention and feed-forward.
Times: medians of rounds taken in turns, in CPU time of one thread. Memory: growth of the peak resident memory of a
process of its own that builds the layers and runs them once; of feed-forward sublayers it builds LAYERS.
"""

import argparse
import hashlib
import multiprocessing
import os
import statistics
import sys
import time
from argparse import Namespace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
from common import high_water  # noqa: E402
from torch import nn  # noqa: E402

LAYERS = 12
KINDS = ("held", "on the fly")
HEADER = f"{'':24}{'batch':>6}{'kind':>12}{'ms':>9}{'ratio':>8}{'peak MiB':>10}  bits"


class FeedForward(nn.Module):
    def __init__(self, size, inner, kind, layer=0):
        super().__init__()
        self.fc1 = linear(f"layers.{layer}.fc1.weight", size, inner, kind)
        self.fc2 = linear(f"layers.{layer}.fc2.weight", inner, size, kind)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))


def linear(name, inputs, outputs, kind):
    from fairseq_synth.modules.products import Linear
    from fairseq_synth.seeded.linear import SeededLinear
    from fairseq_synth.seeded.recipe import Recipe, Rule

    recipe = Recipe(1, name, (outputs, inputs), Rule("uniform", (6 / (inputs + outputs)) ** 0.5))
    bias = nn.Parameter(torch.zeros(outputs), requires_grad=False)
    if kind == "on the fly":
        return SeededLinear(recipe, bias, faster=True)
    layer = nn.utils.skip_init(Linear, inputs, outputs)
    layer.weight, layer.bias = nn.Parameter(recipe.tensor(), requires_grad=False), bias
    return layer


def transformer(kind):
    """The base model; the same embeddings for both kinds."""
    from fairseq.data import Dictionary

    from fairseq_synth.models.config import namespace
    from fairseq_synth.models.transformer import SynthTransformerBase

    words = Dictionary()
    for i in range(1000):
        words.add_symbol(str(i))
    options = {f"{part}_attention": "dot_product" for part in ("encoder_self", "decoder_self", "cross")}
    options.update(freeze="attention,ffn", frozen_init=1, share_all_embeddings=True)
    options["frozen_on_the_fly"] = kind == "on the fly"
    torch.manual_seed(1)
    task = Namespace(source_dictionary=words, target_dictionary=words)
    model = SynthTransformerBase.build_model(namespace(SynthTransformerBase.defaults, options), task).eval()
    tokens = torch.arange(20).repeat(64, 1) + 4
    return lambda batch: model(tokens[:batch], torch.full((batch,), 20), tokens[:batch])[0]


def feed_forward(size, inner, layers):
    def build(kind):
        stack = nn.Sequential(*[FeedForward(size, inner, kind, layer) for layer in range(layers)])
        x = torch.randn(64, size, generator=torch.Generator().manual_seed(1))
        return lambda batch: stack(x[:batch])

    return build


CASES = {
    "feed-forward 512x2048": (feed_forward(512, 2048, 1), feed_forward(512, 2048, LAYERS)),
    "feed-forward 1024x4096": (feed_forward(1024, 4096, 1), feed_forward(1024, 4096, LAYERS)),
    "Transformer base": (transformer, transformer),
}


@torch.no_grad()
def peak(case, kind, batch, answer):
    """In a process of its own: (MiB, digest of the output)."""
    import fairseq_synth.models.transformer  # noqa: F401  (before the first look at the memory)

    torch.set_num_threads(1)
    torch.randn(64, 512) @ torch.randn(512, 64)
    before = high_water()
    y = CASES[case][1](kind)(batch)
    answer.put(((high_water() - before) / 2**20, hashlib.sha256(y.numpy().tobytes()).hexdigest()))


def measure_peak(case, kind, batch):
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the new process: freed memory leaves it at once
    process = context.Process(target=peak, args=(case, kind, batch, answer))
    process.start()
    found = answer.get(timeout=600)
    process.join()
    return found


@torch.no_grad()
def times(runs, batch, rounds):
    """kind -> seconds, rounds taken in turns."""
    found = {kind: [] for kind in runs}
    for turn in range(rounds + 1):
        for kind, run in runs.items():
            start = time.process_time()
            run(batch)
            if turn:  # the first does not count
                found[kind].append(time.process_time() - start)
    return {kind: statistics.median(taken) for kind, taken in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds of each measurement (15)")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one (may be repeated)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread ({torch.backends.cpu.get_cpu_capability()})")
    print(HEADER)
    for case in args.case or CASES:
        runs = {kind: CASES[case][0](kind) for kind in KINDS}
        for batch in (1, 64):
            seconds = times(runs, batch, args.rounds)
            peaks = {kind: measure_peak(case, kind, batch) for kind in KINDS}
            same = "equal" if peaks["held"][1] == peaks["on the fly"][1] else "DIFFER"
            for kind in KINDS:
                ratio = seconds[kind] / seconds["held"]
                cells = f"{batch:>6}{kind:>12}{1e3 * seconds[kind]:>9.2f}{ratio:>8.1f}{peaks[kind][0]:>10.1f}"
                print(f"{case:24}{cells}  {same if kind != 'held' else ''}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
