"""Section 2b: output layer and loss in chunks of tokens, with fairseq's Transformer and with ours.

Whole updates by fairseq's trainer as in section 2, with fairseq's ``label_smoothed_cross_entropy``, which makes the
logits of all tokens, and with ``chunked_label_smoothed_cross_entropy``. The first of --variants stands for ours. So
the ratio of "transformer, chunks" is the loss's part of a speed-up, and the rest is the attention's.

Memory is the peak of a process of its own that builds the trainer and does a few updates, all of it: Python, the
libraries, model and optimizer (on a GPU: what PyTorch allocated there).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
import torch  # noqa: E402
from common import Column, Results, Section, Settings, high_water, race  # noqa: E402
from models import STOCK, Size, arguments, build_trainer, dictionary, title, training_batches  # noqa: E402
from training import updates  # noqa: E402

CASES: Dict[str, Size] = {
    "mini": Size(1, 16, 24, 2, symbols=50, tokens=120),
    "tiny": Size(4, 128, 256, 4, tokens=4096, batches=2),
    "base": Size(6, 512, 2048, 8, symbols=32_000, tokens=4096),
}
MEASURED: Dict[str, Tuple[str, ...]] = {"mini": ("mini",), "small": ("tiny",), "full": ("tiny", "base")}
LOSSES = {"whole": "label_smoothed_cross_entropy", "chunks": "chunked_label_smoothed_cross_entropy"}


def run(settings: Settings) -> Iterator[Results]:
    for name in MEASURED[settings.size]:
        size = CASES[name]
        case = f"{title(name, size)}, {size.symbols} symbols"
        if settings.wants(case):
            for result in compare(name, settings):
                yield {"case": case, **result}


def contenders(settings: Settings) -> List[Tuple[str, str]]:
    """(model, whole or chunks)"""
    return [(model, loss) for model in (STOCK, *settings.variants[:1]) for loss in LOSSES]


def build(name: str, model: str, loss: str, settings: Settings) -> Tuple[Any, Any]:
    """Trainer and batches."""
    size = CASES[name]
    settings.seed_all()
    words = dictionary(size.symbols)
    trainer = build_trainer([*arguments(size, model, "DATA", settings), "--criterion", LOSSES[loss]], words)
    return trainer, training_batches(size, words, trainer.task, settings)


def compare(name: str, settings: Settings) -> Iterator[Results]:
    built = {f"{model}, {loss}": build(name, model, loss, settings) for model, loss in contenders(settings)}
    tokens = sum(batch["ntokens"] for batch in next(iter(built.values()))[1])
    results = race({key: updates(trainer, batches) for key, (trainer, batches) in built.items()}, settings)
    for result in results:
        speed = tokens / result["seconds"]
        result.update(words_per_second=speed, tokens=tokens)
        if settings.size != "mini" or result is results[-1]:  # mini: one process is enough to see that it runs
            result.update(peak_in_own_process(name, *result["name"].rsplit(", ", 1), settings))
        yield result


# ---------------------------------------------------------------------- memory
def peak(name: str, model: str, loss: str, settings: Settings) -> Results:
    """Bytes at the peak of this process, and before the first update."""
    trainer, batches = build(name, model, loss, settings)
    before = _high_water(settings)
    for _ in range(3):
        updates(trainer, batches)()
    return {"peak_bytes": _high_water(settings), "start_bytes": before}


def _high_water(settings: Settings) -> int:
    return torch.cuda.max_memory_allocated() if settings.device == "cuda" else high_water()


def peak_in_own_process(name: str, model: str, loss: str, settings: Settings) -> Results:
    wanted = {"name": name, "model": model, "loss": loss, "settings": vars(settings)}
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(wanted)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {model}, {loss} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


SECTION = Section(
    "loss",
    "Output layer and loss in chunks of tokens",
    "words/s: target tokens per second. peak MB: of a process of its own, Python and the\n"
    "libraries included; start MB: before its first update. ratio: speed against\n"
    "fairseq's transformer with fairseq's loss.",
    (
        Column("words/s", "words_per_second", "{:.0f}"),
        Column("peak MB", "peak_bytes", "{:.0f}", 1e-6),
        Column("start MB", "start_bytes", "{:.0f}", 1e-6),
    ),
    run,
    {"sizes": {name: size._asdict() for name, size in CASES.items()}, "criterions": LOSSES, "dropout": 0.1},
)

if __name__ == "__main__":  # what peak_in_own_process starts
    import logging

    logging.disable(logging.INFO)
    import fairseq_synth  # noqa: F401

    given = json.loads(sys.argv[1])
    settings = Settings(**{**given["settings"], "variants": tuple(given["settings"]["variants"])})
    torch.set_num_threads(settings.threads)
    print(json.dumps(peak(given["name"], given["model"], given["loss"], settings)))
