"""SIGTERM, SIGINT and SIGUSR1: a training finishes its update, saves, and ends with an exit status of its own.

A scheduler announces the end of a job so (SLURM: SIGTERM at preemption and at the time limit, or what --signal asks
for). The main thread may be far away inside of PyTorch, so a thread of our own listens.
"""

import logging
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker
from typing import Any, Callable, Dict, Optional

import torch

from . import training_loop
from .patching import replace
from .saving import finish_writing

logger = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h: "temporary failure, the user is invited to retry".
EXIT_STATUS = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Launchers pass a signal on to processes that got it themselves: what follows so soon is the same one.
_SAME_SECONDS = 2.0


class _Notice:
    """Listens, and keeps what came first."""

    def __init__(self) -> None:
        self.number: Optional[int] = None  # of the first signal
        self._time = 0.0
        self._pipe: Optional[int] = None
        self._before: Dict[int, Any] = {}  # handlers; under -1 the wakeup descriptor

    def listen(self) -> None:
        """From the main thread; twice is harmless."""
        if self._before:
            return
        if self._pipe is None:
            receiving, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)
            threading.Thread(target=self._receive, args=(receiving,), daemon=True).start()
            multiprocessing.util.register_after_fork(self, _Notice.leave_to_parent)
        self._before = {-1: signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)}
        self._before.update({number: signal.signal(number, _nothing) for number in SIGNALS})

    def stop(self) -> None:
        """What was before."""
        self.number = None
        for number, handler in self._before.items():
            if number == -1:
                signal.set_wakeup_fd(handler)
            elif handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)
        self._before = {}

    def _receive(self, receiving: int) -> None:
        while True:
            for number in os.read(receiving, 1):
                if number in SIGNALS:
                    self._note(number)

    def _note(self, number: int) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._time = number, now
        elif now - self._time > _SAME_SECONDS:
            os._exit(128 + number)  # as if the signal had ended the process

    def leave_to_parent(self) -> None:
        """In a process that loads data: a signal to all processes of a job must not take the data away.

        Only the parent ends it. PyTorch sets a handler of its own there, so the signals are blocked and awaited.
        """
        signal.set_wakeup_fd(-1)
        if self._before and hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            threading.Thread(target=_await_parent, args=(os.getppid(),), daemon=True).start()


def _await_parent(parent: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)


def _nothing(*_: Any) -> None:
    """The thread does what there is to do. Without a handler the signal would end the process."""


_NOTICE = _Notice()


def finish_the_update() -> bool:
    """SIGTERM, SIGINT and SIGUSR1 end a training at once; what it learned since the last save is lost.

    All fairseq versions. The first of them lets all processes finish the update, save checkpoint_last.pt and exit with
    status 75; a second one ends the process at once.
    """
    from fairseq import checkpoint_utils
    from fairseq.distributed import utils as distributed_utils

    replace(checkpoint_utils, "load_checkpoint", _listening)
    replace(checkpoint_utils, "save_checkpoint", _noting_saves)
    replace(distributed_utils, "call_main", _passing_on)
    _protect_resource_tracker()
    return True


def _protect_resource_tracker() -> None:
    """Python's helper process outlives SIGTERM and SIGINT; without it no process that loads data can start."""
    ignored = getattr(resource_tracker, "_IGNORED_SIGNALS", SIGNALS)
    resource_tracker._IGNORED_SIGNALS = tuple(dict.fromkeys((*ignored, *SIGNALS)))  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- in the training loop
def _listening(stock: Callable) -> Callable:
    def load_checkpoint(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if _in_main_thread():
            _NOTICE.listen()
        training_loop.replace_in_loop("validate_and_save", _stopping)
        training_loop.replace_in_loop("train", _leaving)
        return stock(cfg, trainer, *args, **kwargs)

    return load_checkpoint


def _noting_saves(stock: Callable) -> Callable:
    def save_checkpoint(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        saved = stock(cfg, trainer, *args, **kwargs)
        trainer.saved_update = trainer.get_num_updates()
        return saved

    return save_checkpoint


def _stopping(stock: Callable) -> Callable:
    """The validation and the save that are due at this update are made: a resumed training would not make them."""
    from fairseq import checkpoint_utils

    def validate_and_save(cfg: Any, trainer: Any, task: Any, epoch_itr: Any, *args: Any) -> Any:
        losses, should_stop = stock(cfg, trainer, task, epoch_itr, *args)
        if should_stop or not _agreed(trainer):
            return losses, should_stop
        if getattr(trainer, "saved_update", None) != trainer.get_num_updates():
            trainer.unsaved_loss = losses[0]  # fairseq's own saves alone decide which checkpoint is the best
            checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
        trainer.was_stopped = True
        return losses, True

    return validate_and_save


def _leaving(stock: Callable) -> Callable:
    def train(cfg: Any, trainer: Any, *args: Any) -> Any:
        result = stock(cfg, trainer, *args)
        if not getattr(trainer, "was_stopped", False):
            return result
        finish_writing()
        if trainer.data_parallel_world_size > 1:  # a launcher ends all processes as soon as one of them has ended
            torch.distributed.barrier(group=trainer.data_parallel_process_group)
        unsaved = cfg.checkpoint.no_save or cfg.checkpoint.no_last_checkpoints
        then = "nothing is saved, as you asked" if unsaved else "saved; the same command goes on from there"
        logger.info("stopped by a signal after update %d: %s (exit status %d)", trainer.get_num_updates(), then,
                    EXIT_STATUS)  # fmt: skip
        raise SystemExit(EXIT_STATUS)

    return train


def _agreed(trainer: Any) -> bool:
    """Whether any process of the training got a signal; the same answer, at the same update, in all of them."""
    came = _NOTICE.number is not None
    if trainer.data_parallel_world_size == 1 or trainer.tpu:
        return came
    flag = torch.tensor([float(came)], device=trainer.device)
    torch.distributed.all_reduce(flag, group=trainer.data_parallel_process_group)
    return bool(flag.item() > 0)


# ---------------------------------------------------------------------- the process that starts others
def _passing_on(stock: Callable) -> Callable:
    """fairseq starts one process per GPU: the one that waits for them passes signals on, and their status back."""

    def call_main(cfg: Any, main: Any, **kwargs: Any) -> Any:
        before: Dict[int, Any] = {}
        if cfg.distributed_training.distributed_world_size > 1 and _in_main_thread():
            before = {number: signal.signal(number, _to_children) for number in SIGNALS}
        try:
            return stock(cfg, main, **kwargs)
        except torch.multiprocessing.ProcessExitedException as error:
            if error.exit_code in (EXIT_STATUS, *(128 + number for number in SIGNALS)):
                sys.exit(error.exit_code)
            raise
        finally:
            if _in_main_thread():
                _NOTICE.stop()
                for number, handler in before.items():
                    signal.signal(number, handler)

    return call_main


def _to_children(number: int, _: Any) -> None:
    children = multiprocessing.active_children()
    for child in children:
        if child.pid is not None:
            os.kill(child.pid, number)
    if not children:  # they have not been started
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _in_main_thread() -> bool:
    """Elsewhere Python sets no handlers."""
    return threading.current_thread() is threading.main_thread()
