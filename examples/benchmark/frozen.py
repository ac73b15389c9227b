"""Section 6: what freezing saves: step time, optimizer memory, checkpoint size.

Whole updates by fairseq's trainer as in section 2, on the same batches, of one model whose parts are frozen at their
random initialisation. Frozen parameters get no gradient and no optimizer state; where what lies below them trains,
the gradient still passes through them.
"""

import io
from typing import Any, Dict, Iterator, List, Tuple

import torch
from common import Column, Results, Section, Settings, race
from models import MEASURED, SIZES, Size, arguments, build_trainer, dictionary, title, training_batches
from training import updates

SCORER = "dot_product"
FREE = "nothing frozen"
# name -> arguments of fairseq-train
FROZEN: Dict[str, List[str]] = {
    FREE: [],
    **{name: ["--freeze", name] for name in ("ffn", "attention", "embeddings", "attention,ffn")},
    "ffn, stored as a seed": ["--freeze", "ffn", "--frozen-init", "1", "--store-frozen", "seed"],
}


def run(settings: Settings) -> Iterator[Results]:
    for name in MEASURED[settings.size]:
        case = title(name, SIZES[name])
        if settings.wants(case):
            for result in compare(SIZES[name], settings):
                yield {"case": case, **result}


def compare(size: Size, settings: Settings) -> Iterator[Results]:
    settings.seed_all()
    words = dictionary(size.symbols)
    trainers = {}
    for name, extra in FROZEN.items():
        trainers[name] = build_trainer([*arguments(size, SCORER, "DATA", settings), *extra], words)
    batches = training_batches(size, words, trainers[FREE].task, settings)
    results = race({name: updates(trainer, batches) for name, trainer in trainers.items()}, settings)
    for result in results:
        trainer = trainers[result["name"]]
        trained, share = trained_parameters(trainer.get_model())
        memory, written = optimizer_bytes(trainer), checkpoint_bytes(trainer)
        yield {**result, "time": result["seconds"] / results[0]["seconds"], "trained": trained, "trained_share": share,
               "optimizer_bytes": memory, "checkpoint_bytes": written}  # fmt: skip


def trained_parameters(model: Any) -> Tuple[int, float]:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(n for n, trains in sizes if trains)
    return trained, trained / sum(n for n, _ in sizes)


def optimizer_bytes(trainer: Any) -> int:
    """Of the optimizer's state: Adam's two moments of every parameter that trains, and its step counts."""
    state = trainer.optimizer.optimizer.state
    tensors = [value for values in state.values() for value in values.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def checkpoint_bytes(trainer: Any) -> int:
    """What a checkpoint of the training holds: weights and optimizer state."""
    file = io.BytesIO()
    torch.save([trainer.get_model().state_dict(), trainer.optimizer.state_dict()], file)
    return file.tell()


SECTION = Section(
    "frozen",
    "Frozen components",
    "trained: share of the parameters. Adam, file: MB of the optimizer's state and of\n"
    "a checkpoint with it. time: of an update, against the model that trains all of it;\n"
    "ratio: speed against it.",
    (
        Column("trained %", "trained_share", "{:.1f}", 100),
        Column("Adam", "optimizer_bytes", "{:.1f}", 1e-6),
        Column("file", "checkpoint_bytes", "{:.1f}", 1e-6),
        Column("time", "time", "{:.2f}"),
    ),
    run,
    {"scorer": SCORER, "frozen": FROZEN, "sizes": {name: size._asdict() for name, size in SIZES.items()}},
)
