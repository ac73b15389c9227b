"""A resumed training goes on where the other one stopped: the same batches, counters and weights, to the bit."""

import gc
import logging
import math
import sys
from typing import Any, Callable, Dict, List, Optional

import torch

from . import training_loop
from .patching import replace

logger = logging.getLogger(__name__)

# Of torch's ReduceLROnPlateau: what fairseq leaves out of a checkpoint.
_PLATEAU_COUNTERS = ("num_bad_epochs", "cooldown_counter")
_PATIENCE_COUNTERS = ("best", "num_runs")
_SCALER_COUNTERS = ("_iter", "_last_overflow_iter", "_last_rescale_iter", "_overflows_since_rescale")


def make_batches_every_epoch() -> bool:
    """Resumed after the first epoch, a training reads some sentences twice and others not at all.

    Item 33; fairseq main, hence fairseq-fixed 0.12.3.1 (0.12.2 with --update-ordered-indices-seed): batches depend on
    the epoch, but a process keeps those of its first one. They are made anew for every epoch, as with
    `--update-epoch-batch-itr True`; an explicit `--update-epoch-batch-itr False` is obeyed.
    """
    from fairseq.trainer import Trainer

    def making(stock: Callable) -> Callable:
        def get_train_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
            if _says_keep(sys.argv):
                return stock(self, *args, **kwargs)
            _close(getattr(self, "last_train_iterator", None))
            kwargs["disable_iterator_cache"] = True
            self.last_train_iterator = stock(self, *args, **kwargs)
            return self.last_train_iterator

        return get_train_iterator

    replace(Trainer, "get_train_iterator", making)
    return True


def stop_where_training_ended() -> bool:
    """Started again, a finished training makes one more update and overwrites its checkpoint.

    Item 35; all fairseq versions: --max-update, --stop-time-hours and --patience are looked at after an update.
    """
    from fairseq import checkpoint_utils

    replace(checkpoint_utils, "load_checkpoint", _looking_for_the_end)
    return True


def keep_all_counters() -> bool:
    """A resumed training forgets its --patience, and what reduce_lr_on_plateau has counted.

    All fairseq versions: neither is in the checkpoint, and the validation that ends an epoch reaches the learning
    rate scheduler only after the save.
    """
    from fairseq import checkpoint_utils
    from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule
    from fairseq.trainer import Trainer

    replace(Trainer, "state_dict", _with_patience)
    replace(checkpoint_utils, "load_checkpoint", _restoring_counters)
    replace(ReduceLROnPlateauLRSchedule, "state_dict", _with_plateau)
    replace(ReduceLROnPlateauLRSchedule, "load_state_dict", _restoring_plateau)
    return True


def keep_float32_weights() -> bool:
    """Resumed under --fp16 or --bf16, a training goes on from weights rounded to half precision.

    All fairseq versions: the float32 weights that the optimizer updates, and the state of the loss scale (--amp, too),
    are not in the checkpoint. Both are now in its optimizer state.
    """
    from fairseq.optim import fp16_optimizer
    from fairseq.optim.amp_optimizer import AMPOptimizer

    for mixin in (fp16_optimizer._FP16OptimizerMixin, fp16_optimizer._MemoryEfficientFP16OptimizerMixin):
        replace(mixin, "state_dict", _with_float32)
        replace(mixin, "load_state_dict", _restoring_float32)
    replace(AMPOptimizer, "state_dict", _with_scaler)
    replace(AMPOptimizer, "load_state_dict", _restoring_scaler)
    return True


def _says_keep(arguments) -> bool:
    """The default is False, too: only the command line tells who said it."""
    words = " ".join(arguments[1:]).lower().replace("=", " ")
    return any(f"{option} false" in words for option in ("--update-epoch-batch-itr", "dataset.update_epoch_batch_itr"))


def _close(iterator: Any) -> None:
    """End the processes that load data for it, now: forks of the next epoch would hold on to them."""
    if getattr(iterator, "num_workers", 0):
        for name in ("_cur_epoch_itr", "_next_epoch_itr", "dataloader"):
            setattr(iterator, name, None)
        gc.collect()


# ---------------------------------------------------------------------- a finished training
def _looking_for_the_end(stock: Callable) -> Callable:
    def load_checkpoint(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        extra_state, epoch_itr = stock(cfg, trainer, *args, **kwargs)
        end = _end(trainer, epoch_itr)
        if end:
            logger.info("training is finished, nothing to do: %s", end)
        trainer.has_ended = bool(end)
        training_loop.replace_in_loop("train", _unless_ended)
        return extra_state, epoch_itr

    return load_checkpoint


def _unless_ended(stock: Callable) -> Callable:
    def train(cfg: Any, trainer: Any, *args: Any) -> Any:
        return ([None], True) if trainer.has_ended else stock(cfg, trainer, *args)

    return train


def _end(trainer: Any, epoch_itr: Any) -> Optional[str]:
    """Why no update is left to make; None if one is."""
    limits, updates = trainer.cfg.optimization, trainer.get_num_updates()
    if updates == 0:
        return None
    hours = trainer._previous_training_time / 3600  # the same in every process, unlike the time of now
    patience, stopping = trainer.cfg.checkpoint.patience, _early_stopping()
    if updates >= (limits.max_update or math.inf):
        return f"{updates} updates made, --max-update {limits.max_update}"
    if epoch_itr.next_epoch_idx > (limits.max_epoch or math.inf):
        return f"{epoch_itr.next_epoch_idx - 1} epochs made, --max-epoch {limits.max_epoch}"
    if hours > limits.stop_time_hours > 0:
        return f"trained for {hours:.2f} hours, --stop-time-hours {limits.stop_time_hours}"
    if stopping.get("num_runs", 0) >= patience > 0:
        return f"{stopping['num_runs']} validations without improvement, --patience {patience}"
    return None


# ---------------------------------------------------------------------- counters
def _early_stopping() -> Dict[str, Any]:
    """fairseq keeps the counters of --patience on the function that reads them: best, num_runs."""
    for module in training_loop.copies():
        counters = vars(module.should_stop_early)
        if "best" in counters:
            return {name: counters[name] for name in _PATIENCE_COUNTERS}
    return {}


def _set_early_stopping(counters: Dict[str, Any]) -> None:
    for module in training_loop.copies():
        for name in _PATIENCE_COUNTERS:
            vars(module.should_stop_early).pop(name, None)
        vars(module.should_stop_early).update(counters)


def _with_patience(stock: Callable) -> Callable:
    def state_dict(self: Any) -> Dict[str, Any]:
        state = stock(self)
        if self.cfg.checkpoint.patience > 0:
            state["extra_state"]["early_stopping"] = _early_stopping()
        if hasattr(self, "unsaved_loss"):  # see signals
            state["extra_state"]["unsaved_loss"] = self.unsaved_loss
        return state

    return state_dict


def _restoring_counters(stock: Callable) -> Callable:
    def load_checkpoint(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        extra_state, epoch_itr = stock(cfg, trainer, *args, **kwargs)
        _set_early_stopping({})
        if extra_state is not None and trainer.get_num_updates() > 0:  # 0: only the weights were wanted
            if not cfg.reset_meters:
                _set_early_stopping(extra_state.get("early_stopping", {}))
            if not (cfg.reset_lr_scheduler or cfg.reset_dataloader):
                _restore_schedule(trainer, extra_state)
        return extra_state, epoch_itr

    return load_checkpoint


def _restore_schedule(trainer: Any, extra_state: Dict[str, Any]) -> None:
    """As it was, without the steps of loading; and on with the step that follows the save at the end of an epoch."""
    trainer.lr_scheduler.load_state_dict(trainer._optim_history[-1]["lr_scheduler_state"])
    position = extra_state["train_iterator"]
    if position["iterations_in_epoch"] == 0:
        trainer.lr_step(position["epoch"] - 1, extra_state.get("unsaved_loss", extra_state["val_loss"]))


def _with_plateau(stock: Callable) -> Callable:
    def state_dict(self: Any) -> Dict[str, Any]:
        return {**stock(self), **{name: getattr(self.lr_scheduler, name) for name in _PLATEAU_COUNTERS}}

    return state_dict


def _restoring_plateau(stock: Callable) -> Callable:
    def load_state_dict(self: Any, state_dict: Dict[str, Any]) -> None:
        stock(self, state_dict)
        for name in _PLATEAU_COUNTERS:
            setattr(self.lr_scheduler, name, state_dict.get(name, 0))

    return load_state_dict


# ---------------------------------------------------------------------- half precision
def _with_float32(stock: Callable) -> Callable:
    def state_dict(self: Any) -> Dict[str, Any]:
        state = stock(self)
        state["float32_weights"] = [weights.detach() for weights in _masters(self)]
        if self.scaler is not None:
            state["loss_scaler"] = {name: getattr(self.scaler, name) for name in _SCALER_COUNTERS}
        return state

    return state_dict


def _restoring_float32(stock: Callable) -> Callable:
    def load_state_dict(self: Any, state_dict: Dict[str, Any], optimizer_overrides: Any = None) -> None:
        stock(self, state_dict, optimizer_overrides)
        saved, own = state_dict.get("float32_weights", ()), _masters(self)
        if [weights.shape for weights in saved] == [weights.shape for weights in own]:
            with torch.no_grad():
                for weights, theirs in zip(own, saved):
                    weights.copy_(theirs)
        for name, value in state_dict.get("loss_scaler", {}).items():
            setattr(self.scaler, name, value)

    return load_state_dict


def _masters(optimizer: Any) -> List[torch.Tensor]:
    """The float32 weights: flat per device, a list of tensors, or none (memory-efficient)."""
    masters = getattr(optimizer, "fp32_params", [])
    if torch.is_tensor(masters):
        return [masters]
    return list(masters.values()) if isinstance(masters, dict) else list(masters)


def _with_scaler(stock: Callable) -> Callable:
    def state_dict(self: Any) -> Dict[str, Any]:
        return {**stock(self), "amp_scaler": self.scaler.state_dict()}

    return state_dict


def _restoring_scaler(stock: Callable) -> Callable:
    def load_state_dict(self: Any, state_dict: Dict[str, Any], optimizer_overrides: Any = None) -> None:
        stock(self, state_dict, optimizer_overrides)
        if state_dict.get("amp_scaler"):  # empty where there is nothing to scale, on a CPU
            self.scaler.load_state_dict(state_dict["amp_scaler"])

    return load_state_dict
