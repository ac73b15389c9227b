"""Checkpoints are written whole or not at all, and hold what every worker knows."""

import concurrent.futures
import copy as copying
import io
import shutil
import time
from typing import Any, Callable, List, Optional

import torch

from ..errors import UsageError
from ..files import whole_file
from .patching import replace


def write_checkpoints_whole() -> bool:
    """A kill or a full disk during a save leaves a torn checkpoint_last.pt, and then nothing to go on from.

    Items 34; all fairseq versions: only the first file of a save is renamed into place, the others are copied, and
    none is flushed to the disk. A full disk was reported as a damaged checkpoint.
    """
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager

    replace(checkpoint_utils, "torch_persistent_save", _saving_whole)
    replace(PathManager, "copy", _copying_whole)
    return True


def write_in_the_background() -> bool:
    """--write-checkpoints-asynchronously tears files, and never writes checkpoint_last.pt beside another file.

    All fairseq versions: iopath writes to the final name, and cannot copy. Here one thread writes and copies, in the
    order of the calls; fairseq waits for it at its end.
    """
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager

    replace(checkpoint_utils, "save_checkpoint", _saving_in_the_background)
    replace(PathManager, "async_close", _closing)
    return True


def gather_before_saving() -> bool:
    """The first worker alone writes a checkpoint, so what the data iterators of the others hold is lost.

    All fairseq versions. An iterator with a method `gather_state` is asked before, on every worker.
    """
    from fairseq import checkpoint_utils

    replace(checkpoint_utils, "save_checkpoint", _gathering)
    return True


# ---------------------------------------------------------------------- whole files
def _saving_whole(stock: Callable) -> Callable:
    from fairseq.file_io import PathManager

    def torch_persistent_save(obj: Any, filename: Any, async_write: bool = False) -> None:
        if not isinstance(filename, str) or PathManager.path_requires_pathmanager(filename):
            stock(obj, filename, async_write)
            return
        if _BACKGROUND.active:
            _BACKGROUND.write(obj, filename)
        else:
            _save(obj, filename)

    return torch_persistent_save


def _save(obj: Any, path: str) -> None:
    """Three times, as fairseq does: a network disk may be away for a moment."""
    for last in (False, False, True):
        try:
            with whole_file(path, explain=False) as file:
                torch.save(obj, file)
            return
        except UsageError:  # a full disk
            raise
        except Exception:
            if last:
                raise
            time.sleep(2.5)


def _copying_whole(stock: Callable) -> Callable:
    from fairseq.file_io import PathManager

    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
        if PathManager.path_requires_pathmanager(src_path) or PathManager.path_requires_pathmanager(dst_path):
            return stock(src_path, dst_path, overwrite)
        if _BACKGROUND.active:
            _BACKGROUND.submit(_copy, src_path, dst_path)
        else:
            _copy(src_path, dst_path)
        return dst_path

    return copy


def _copy(source: str, destination: str) -> None:
    with open(source, "rb") as original, whole_file(destination, explain=False) as file:
        shutil.copyfileobj(original, file, 2**24)


# ---------------------------------------------------------------------- asynchronous writing
class _Background:
    """One thread, so that files appear in the order of the calls."""

    def __init__(self) -> None:
        self.active = False  # inside of a save that is to be asynchronous
        self._thread: Optional[concurrent.futures.ThreadPoolExecutor] = None
        self._pending: List[concurrent.futures.Future] = []

    def write(self, obj: Any, path: str) -> None:
        buffer = io.BytesIO()
        torch.save(obj, buffer)  # now: the next update changes the tensors
        self.submit(_write, buffer, path)

    def submit(self, function: Callable, *args: Any) -> None:
        self._thread = self._thread or concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending.append(self._thread.submit(function, *args))

    def wait(self) -> None:
        """Raises what went wrong in the thread."""
        pending, self._pending = self._pending, []
        for work in pending:
            work.result()

    def raise_finished(self) -> None:
        """The same without waiting."""
        finished = [work for work in self._pending if work.done()]
        self._pending = [work for work in self._pending if not work.done()]
        for work in finished:
            work.result()


_BACKGROUND = _Background()


def finish_writing() -> None:
    """Wait for what --write-checkpoints-asynchronously has begun. Raises what went wrong with it."""
    _BACKGROUND.wait()


def _write(buffer: io.BytesIO, path: str) -> None:
    with whole_file(path, explain=False) as file:
        file.write(buffer.getbuffer())


def _saving_in_the_background(stock: Callable) -> Callable:
    def save_checkpoint(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if not cfg.write_checkpoints_asynchronously:
            return stock(cfg, *args, **kwargs)
        _BACKGROUND.raise_finished()
        copies = copying.copy(cfg)
        copies.write_checkpoints_asynchronously = False  # else fairseq would leave out all files but the first
        _BACKGROUND.active = True
        try:
            return stock(copies, *args, **kwargs)
        finally:
            _BACKGROUND.active = False

    return save_checkpoint


def _closing(stock: Callable) -> Callable:
    def async_close() -> bool:
        finish_writing()
        return stock()

    return async_close


# ---------------------------------------------------------------------- iterators
def _gathering(stock: Callable) -> Callable:
    def save_checkpoint(cfg: Any, trainer: Any, epoch_itr: Any, val_loss: Any) -> Any:
        if not cfg.no_save and hasattr(epoch_itr, "gather_state"):
            epoch_itr.gather_state()
        return stock(cfg, trainer, epoch_itr, val_loss)

    return save_checkpoint
