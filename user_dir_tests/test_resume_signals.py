"""SIGTERM, SIGINT and SIGUSR1 through the real command: finish the update, save, exit with 75; a second: at once."""

import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker

import pytest
import resume_runs
import torch
from conftest import ENVIRONMENT, train_args

from fairseq_synth.compat import signals

LAST = "checkpoint_last.pt"
UNBUFFERED = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}


class Training:
    """A process of its own, in a group of its own, whose log is read line by line."""

    def __init__(self, corpus, folder, *extra, command=("-m", "fairseq_cli.train"), updates=100000):
        options = train_args(corpus, folder, "--log-interval", "1", "--disable-validation", *extra, updates=updates)
        self.process = subprocess.Popen(
            [sys.executable, *command, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=UNBUFFERED,
            start_new_session=True,
        )
        self.text = ""

    def read_until(self, pattern):
        for line in iter(self.process.stdout.readline, ""):
            self.text += line
            if re.search(pattern, line):
                return
        raise AssertionError(self.text[-3000:])

    def end(self):
        self.text += self.process.stdout.read()
        return self.process.wait()


@pytest.fixture
def training(corpus, tmp_path):
    started = []

    def start(*args, **kwargs):
        started.append(Training(corpus, tmp_path / "run", *args, **kwargs))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def test_a_signal_to_all_processes_saves_and_exits_with_75(training, corpus, tmp_path):
    """To those that load the data as well, as a terminal and a scheduler send it. They go on until the end."""
    run = training("--num-workers", "2", "--batch-size", "100")
    run.read_until(r"num_updates\D+2\b")
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.end() == 75, run.text[-3000:]
    assert "Traceback" not in run.text and "DataLoader worker" not in run.text
    updates = int(re.search(r"stopped by a signal after update (\d+): saved; the same command goes on", run.text)[1])
    saved = torch.load(tmp_path / "run" / LAST, map_location="cpu")
    assert saved["optimizer_history"][-1]["num_updates"] == updates


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_other_signals_do_the_same(corpus, tmp_path, number):
    options = train_args(corpus, tmp_path, "--batch-size", "100", updates=5)
    like = resume_runs.Run([0], [0.001], [1], [0.001], "")
    stopped = resume_runs.train(options, tmp_path / "log", [resume_runs.Moment(number, 1.0)], like)
    assert stopped.statuses == [75] and "stopped by a signal after update 1:" in stopped.text
    assert (tmp_path / LAST).exists()


def test_without_a_checkpoint_nothing_is_promised(corpus, tmp_path):
    options = train_args(corpus, tmp_path, "--no-save", updates=5)
    like = resume_runs.Run([0], [0.001], [1], [0.001], "")
    stopped = resume_runs.train(options, tmp_path / "log", [resume_runs.Moment(signal.SIGTERM, 1.0)], like)
    assert stopped.statuses == [75] and "after update 1: nothing is saved, as you asked" in stopped.text


BLOCKED = """
import threading
from fairseq.trainer import Trainer
from fairseq_cli import train
from fairseq_synth.compat import signals

signals._SAME_SECONDS = 0.5
Trainer.train_step = lambda *_: (print("blocked", flush=True), threading.Event().wait())
train.cli_main()
"""


def test_a_second_signal_ends_at_once(training):
    """Whatever the main thread does. One that follows at once is the same one, sent twice by a launcher."""
    run = training(command=("-c", BLOCKED))
    run.read_until("blocked")
    for pause in (0.1, 1.0):
        run.process.send_signal(signal.SIGTERM)
        time.sleep(pause)
        assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 128 + signal.SIGINT


# ------------------------------------------------------------------------------------------- one process per GPU
class Config:
    class distributed_training:
        distributed_world_size = 2


def exited(status):
    return torch.multiprocessing.ProcessExitedException("", error_index=0, error_pid=1, exit_code=status)


@pytest.mark.parametrize("status", [75, 143])
def test_the_status_of_started_processes_is_passed_on(status):
    def stock(cfg, main):
        raise exited(status)

    with pytest.raises(SystemExit, match=str(status)):
        signals._passing_on(stock)(Config, None)


def test_another_status_stays_an_error():
    def stock(cfg, main):
        raise exited(1)

    with pytest.raises(torch.multiprocessing.ProcessExitedException):
        signals._passing_on(stock)(Config, None)


def _wait_for_signal(ready):
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    ready.set()
    os._exit(signal.sigwait(signals.SIGNALS))


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_signals_are_passed_on_to_started_processes(number):
    def stock(cfg, main):
        context = torch.multiprocessing.get_context("forkserver")
        ready = context.Event()
        child = context.Process(target=_wait_for_signal, args=(ready,))
        child.start()
        assert ready.wait(60)
        os.kill(os.getpid(), number)
        child.join()
        return child.exitcode

    before = [signal.getsignal(one) for one in signals.SIGNALS]
    assert signals._passing_on(stock)(Config, None) == number
    assert [signal.getsignal(one) for one in signals.SIGNALS] == before


def test_the_resource_tracker_of_python_does_not_die_of_them():
    """It is started for processes of other start methods than fork; SIGUSR1 would end it."""
    resource_tracker.ensure_running()
    with open(f"/proc/{resource_tracker._resource_tracker._pid}/status") as file:
        masks = dict(line.split(":\t") for line in file if line.startswith("Sig"))
    stopped = int(masks["SigBlk"], 16) | int(masks["SigIgn"], 16)
    assert all(stopped >> (number - 1) & 1 for number in signals.SIGNALS)
