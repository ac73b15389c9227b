"""Where fairseq's training must know what a seed stands for (--store-frozen seed)."""

import contextlib
from typing import Any, Iterator

from fairseq_synth.compat import training_seams
from fairseq_synth.freezing.model import freezes
from fairseq_synth.seeded.model import SeededMixin


@contextlib.contextmanager
def leave_out_of_copies(average: Any) -> Iterator[None]:
    """The float32 copies of a moving average are saved as they are, so what a checkpoint leaves out must not be
    among them."""
    yield
    model = freezes(average.model)
    if isinstance(model, SeededMixin):
        for name in model.left_out_names():
            average.fp32_params.pop(name, None)


training_seams.AROUND_AVERAGE_COPY.append(leave_out_of_copies)
