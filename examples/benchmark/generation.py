"""Section 3: beam search as in fairseq-generate, and what its cache holds.

The weights are random and the output length is fixed (minimum = maximum), so that every model does equal work. The
cache is counted in a run of its own, after every decoding step: the storage behind every tensor of the incremental
state, once, whether or not all of it is in use.
"""

from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import torch
from common import Column, Results, Section, Settings, build_each, race
from models import (
    MEASURED,
    SIZES,
    STOCK,
    Size,
    arguments,
    build_for_generation,
    dictionary,
    generation_batch,
    generation_options,
)

BEAM = 5


class Load(NamedTuple):
    sentences: int
    length: int


LOADS: Dict[str, Tuple[Load, ...]] = {
    "mini": (Load(2, 4),),
    "small": (Load(16, 25),),
    "full": (Load(16, 25), Load(1, 25), Load(16, 100)),
}


def run(settings: Settings) -> Iterator[Results]:
    for name in MEASURED[settings.size]:
        for load in LOADS[settings.size]:
            case = f"{name}: {load.sentences} x {load.length} tokens"
            if settings.wants(case):
                for result in compare(SIZES[name], load, settings):
                    yield {"case": case, **result}


def compare(size: Size, load: Load, settings: Settings) -> Iterator[Results]:
    settings.seed_all()
    words = dictionary(size.symbols)
    batch = generation_batch(size, words, load.sentences, settings)
    searches, caches = {}, {}

    def build(name: str) -> Any:
        return build_for_generation(arguments(size, name, "DATA", settings), words, settings)

    built, skipped = build_each([STOCK, *settings.variants], build)
    yield from skipped
    for name, (task, model) in built.items():
        generator = task.build_generator([model], generation_options(BEAM, load.length))
        caches[name] = cache_peak(task, generator, model, batch, load.length)
        searches[name] = search(task, generator, model, batch)
    for result in race(searches, settings):
        cache = caches[result["name"]]
        yield {
            **result,
            "sentences_per_second": load.sentences / result["seconds"],
            "cache_bytes": cache,
            "cache_share": cache / caches[STOCK],
        }


def search(task: Any, generator: Any, model: Any, batch: Any) -> Callable[[], Any]:
    return lambda: task.inference_step(generator, [model], batch)


def cache_peak(task: Any, generator: Any, model: Any, batch: Any, length: int) -> int:
    """Largest number of bytes that the incremental state holds between two steps. Checks the output length."""
    ensemble, peak = generator.model, 0
    decode = ensemble.forward_decoder

    def watched(tokens: Any, encoder_outs: Any, incremental_states: Any, *rest: Any, **more: Any) -> Any:
        nonlocal peak
        out = decode(tokens, encoder_outs, incremental_states, *rest, **more)
        peak = max(peak, held_bytes(incremental_states))
        return out

    ensemble.forward_decoder = watched
    try:
        found = search(task, generator, model, batch)()
    finally:
        del ensemble.forward_decoder
    lengths = {len(hypothesis["tokens"]) for sentence in found for hypothesis in sentence}
    if lengths != {length + 1}:
        raise RuntimeError(f"hypotheses of {sorted(lengths)} tokens, not {length} and an end: no equal work")
    return peak


def held_bytes(states: Any) -> int:
    storages: Dict[int, int] = {}
    for tensor in tensors(states):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def tensors(value: Any) -> List[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


SECTION = Section(
    "generation",
    f"fairseq-generate, beam {BEAM}, fixed output length",
    "sent/s: sentences per second. cache: MB of the decoding state at its largest.\n"
    "ratio: speed against fairseq's transformer.",
    (Column("sent/s", "sentences_per_second", "{:.1f}"), Column("cache MB", "cache_bytes", "{:.2f}", 1e-6),
     Column("share", "cache_share", "{:.0%}")),
    run,
    {"beam": BEAM},
)  # fmt: skip
