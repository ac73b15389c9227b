"""Where fairseq's training must know what is frozen. Models without ``--freeze`` are left alone."""

import contextlib
from typing import Any, Iterator, Set

from fairseq_synth.compat import training_seams
from fairseq_synth.freezing.groups import tied_names
from fairseq_synth.freezing.model import bare_state, freezes


@contextlib.contextmanager
def resume_with_the_same_set(trainer: Any, filename: str, reset_optimizer: bool) -> Iterator[None]:
    """The optimizer's state fits one frozen set."""
    model = freezes(trainer.get_model())
    if model is None or reset_optimizer:
        yield
        return
    model.resumed_from = filename
    try:
        yield
    finally:
        model.resumed_from = None


@contextlib.contextmanager
def keep_frozen(average: Any, model: Any) -> Iterator[None]:
    """``skip_keys`` is fairseq's own list of what is copied, not averaged. Integers belong there, too."""
    with bare_state(model, average.model):
        frozen = freezes(model)
        if frozen is not None:
            average.skip_keys = set(average.skip_keys) | _copied(frozen)
        yield


def _copied(model: Any) -> Set[str]:
    frozen = set(model.frozen_parameters)
    names = {alias for aliases in tied_names(model) if aliases[0] in frozen for alias in aliases}
    return names | {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}


@contextlib.contextmanager
def copy_tensors_only(average: Any) -> Iterator[None]:
    """The float32 copies are averaged one by one, and saved as they are: the record has no place among them."""
    with bare_state(average.model):
        yield


training_seams.AROUND_LOADING.append(resume_with_the_same_set)
training_seams.AROUND_AVERAGE_STEP.append(keep_frozen)
training_seams.AROUND_AVERAGE_COPY.append(copy_tensors_only)
