"""What a criterion must know before the first update."""

from .patching import replace


def introduce_the_model() -> bool:
    """A criterion meets the model in the first update, and what it refuses there leaves a crash.pt.

    All fairseq versions. A criterion with a method `check_model` is shown the model when the trainer
    is made, before anything is written.
    """
    from fairseq.trainer import Trainer

    def introducing(stock):
        def __init__(self, cfg, task, model, criterion, *args, **kwargs):
            if hasattr(criterion, "check_model"):
                criterion.check_model(model)
            stock(self, cfg, task, model, criterion, *args, **kwargs)

        return __init__

    replace(Trainer, "__init__", introducing)
    return True
