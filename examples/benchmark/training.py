"""Section 2: training speed of whole translation models, by fairseq's own trainer.

Every model is built from fairseq-train's arguments and does whole updates (forward, backward, gradient norm, Adam)
with ``Trainer.train_step`` on the same batches. Ours have one scorer in every self-attention of both sides; the
decoder's attention to the encoder is dot_product everywhere.
"""

from typing import Any, Callable, Dict, Iterator

from common import Column, Results, Section, Settings, build_each, race
from models import MEASURED, SIZES, STOCK, Size, arguments, build_trainer, dictionary, title, training_batches


def run(settings: Settings) -> Iterator[Results]:
    for name in MEASURED[settings.size]:
        size = SIZES[name]
        case = title(name, size)
        if settings.wants(case):
            for result in compare(size, settings):
                yield {"case": case, **result}


def compare(size: Size, settings: Settings) -> Iterator[Results]:
    settings.seed_all()
    words = dictionary(size.symbols)

    def build(name: str) -> Any:
        return build_trainer(arguments(size, name, "DATA", settings), words)

    trainers, skipped = build_each([STOCK, *settings.variants], build)
    yield from skipped
    batches = training_batches(size, words, trainers[STOCK].task, settings)
    tokens = sum(batch["ntokens"] for batch in batches)
    for result in race({name: updates(trainer, batches) for name, trainer in trainers.items()}, settings):
        parameters = sum(p.numel() for p in trainers[result["name"]].model.parameters())
        speed = tokens / result["seconds"]
        yield {**result, "words_per_second": speed, "parameters": parameters, "tokens": tokens}


def updates(trainer: Any, batches: Any) -> Callable[[], Any]:
    def run() -> None:
        for batch in batches:
            trainer.train_step([batch])

    return run


OPTIONS: Dict[str, Any] = {
    "sizes": {name: size._asdict() for name, size in SIZES.items()},
    "criterion": "label_smoothed_cross_entropy",
    "dropout": 0.1,
    "cross_attention": "dot_product",
}
SECTION = Section(
    "training",
    "Training of whole models by fairseq's trainer",
    "words/s: target tokens per second. ratio: speed against fairseq's transformer.",
    (Column("words/s", "words_per_second", "{:.0f}"), Column("M params", "parameters", "{:.1f}", 1e-6)),
    run,
    OPTIONS,
)
