"""Trainings in child processes that get a signal at a chosen moment, and the comparison of what they leave.

A moment is a share of the processor time that the same training takes, from its first epoch on, when nobody disturbs
it: so it is about the same on a slow machine and on a fast one, and it may be anywhere, in the middle of an update, of
a validation, of a write.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import conftest
import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer
from fairseq_cli import train as fairseq_train

_CONTEXT = multiprocessing.get_context("forkserver")  # fairseq is imported once, every training is a fork of that
_CONTEXT.set_forkserver_preload(["resume_runs"])
os.environ["PYTHONPATH"] = str(conftest.REPOSITORY / "user_dir_tests")  # where the fork server finds this file


class Moment(NamedTuple):
    """When `signal` comes: after `share` (0 to 1) of the processor time, of the whole run or of its saves."""

    signal: int
    share: float
    saving: bool = False


class Run(NamedTuple):
    """Of every process: exit status (negative: a signal), seconds of training, saves, seconds in them; their output."""

    statuses: List[Optional[int]]
    seconds: List[float]
    saves: List[int]
    saving: List[float]
    text: str


class _Clock:
    """Sends `moment.signal` to its own process when the time has come, and measures."""

    def __init__(self, moment: Optional[Moment], like: Optional[Run], rank: int) -> None:
        self.saves, self.saving, self.target, self.after, self.begin = 0, 0.0, -1, 0.0, None
        if moment is None or like is None:
            return
        if moment.signal != signal.SIGKILL:  # the timer's own signal ends a process as surely as SIGKILL
            signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), moment.signal))
        if moment.saving:
            self.target = int(moment.share * like.saves[rank])
            self.after = (moment.share * like.saves[rank] - self.target) * like.saving[rank] / like.saves[rank]
        else:
            self.after = moment.share * like.seconds[rank]

    def _start(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-4))

    def at_epoch(self, begin_epoch):
        def first(*args):
            if self.begin is None:
                self.begin = time.process_time()
                if self.target < 0 < self.after:
                    self._start(self.after)
            return begin_epoch(*args)

        return first

    def around(self, save):
        def save_checkpoint(*args, **kwargs):
            if self.saves == self.target:
                self._start(self.after)
            start = time.process_time()
            try:
                return save(*args, **kwargs)
            finally:
                self.saves += 1
                self.saving += time.process_time() - start

        vars(save_checkpoint).update(vars(save))  # fairseq keeps the best loss on the function
        return save_checkpoint


def _train(arguments, log, environment, moment, like, rank, measured) -> None:
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["fairseq-train", *map(str, arguments)]
    clock, status = _Clock(moment, like, rank), 0
    Trainer.begin_epoch = clock.at_epoch(Trainer.begin_epoch)
    checkpoint_utils.save_checkpoint = clock.around(checkpoint_utils.save_checkpoint)
    try:
        fairseq_train.cli_main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())
    signal.setitimer(signal.ITIMER_PROF, 0)
    now = time.process_time()
    measured[:] = [now - (clock.begin or now), clock.saves, clock.saving]
    sys.stdout.flush()
    os._exit(status)


def train(arguments, log: Path, moments: Optional[List[Optional[Moment]]] = None, like: Optional[Run] = None) -> Run:
    """One process per entry of `moments` (default: one, undisturbed). `like` is the undisturbed run."""
    moments = moments or [None]
    start = log.stat().st_size if log.exists() else 0
    processes, measured = [], []
    for rank, moment in enumerate(moments):
        environment = _launched(rank, len(moments)) if len(moments) > 1 else {}
        measured.append(_CONTEXT.Array("d", 3))
        work = (arguments, str(log), environment, moment, like, rank, measured[-1])
        processes.append(_CONTEXT.Process(target=_train, args=work))
        processes[-1].start()
    _wait(processes)
    with open(log, errors="replace") as file:
        file.seek(start)
        text = file.read()
    seconds, saves, saving = zip(*(list(m) for m in measured))
    return Run([p.exitcode for p in processes], seconds, [int(n) for n in saves], saving, text)


def _launched(rank: int, workers: int) -> Dict[str, str]:
    """What torchrun tells a worker."""
    if rank == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            _launched.port = str(free.getsockname()[1])
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _launched.port, "WORLD_SIZE": str(workers), "RANK": str(rank)}


def _wait(processes) -> None:
    """Like torchrun: when one dies, so do the others."""
    while any(p.is_alive() for p in processes):
        for process in processes:
            process.join(0.02)
        if any(p.exitcode not in (None, 0, 75) for p in processes):
            for process in processes:
                process.kill()
    for process in processes:
        process.join()


def differences(one: Path, two: Path) -> List[str]:
    """Where two checkpoints of a training are not equal to the bit: weights, optimizer, position in the data."""
    one, two = (_state(torch.load(path, map_location="cpu")) for path in (one, two))
    return sorted(set(one) ^ set(two)) + [name for name in one if name in two and not _equal(one[name], two[name])]


def _state(checkpoint) -> Dict[str, object]:
    extra = checkpoint["extra_state"]
    parts = {"model": checkpoint["model"], "optimizer": checkpoint["last_optimizer_state"],
             "schedule": checkpoint["optimizer_history"][-1], "position": extra["train_iterator"],
             "best": extra.get("best"), "validation": extra["val_loss"]}  # fmt: skip
    # fairseq's sinusoidal positions keep a buffer that is never written: whatever was in memory
    return {name: value for name, value in _flat(parts, "") if not name.endswith("._float_tensor")}


def _flat(value, name):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        yield from _flat(item, f"{name}.{key}" if name else str(key))
    if not isinstance(value, (dict, list, tuple)):
        yield name, value


def _equal(one, two) -> bool:
    if torch.is_tensor(one) and torch.is_tensor(two):
        return one.dtype == two.dtype and torch.equal(one, two)
    return type(one) is type(two) and one == two
