"""The folder of a training: one training at a time, and the newest whole checkpoint in it."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import zipfile
from typing import Any, Callable, Dict, Iterator, List, Optional

from ..errors import UsageError
from ..files import SUFFIX
from .patching import replace

logger = logging.getLogger(__name__)

LOCK = ".training.lock"
_LAST = "checkpoint_last.pt"
# What fairseq writes during a training, and what such a file is called before it is whole.
_CHECKPOINT = re.compile(r"checkpoint(\d+|_\d+_\d+|_best|\.best_.+|_last)\.pt")
_LEFTOVER = re.compile(r"(checkpoint.*|crash)\.pt" + re.escape(SUFFIX))

_held: Dict[str, int] = {}  # folder -> file descriptor of its lock


def hold_save_dir() -> bool:
    """Two trainings into one --save-dir overwrite each other's checkpoints.

    All fairseq versions. The first process of a training (rank 0) holds a lock on a file in the folder. It belongs to
    the process: however that ends, the lock is gone, and the processes that load data do not inherit it.
    """
    from fairseq import checkpoint_utils
    from fairseq.distributed import utils as distributed_utils

    replace(checkpoint_utils, "load_checkpoint", _holding)
    replace(distributed_utils, "call_main", _letting_go)
    return True


def restore_a_whole_checkpoint() -> bool:
    """A torn checkpoint_last.pt ends a resumed training, although a whole checkpoint lies beside it.

    All fairseq versions. The newest whole one is taken, and the log says so; not where --restore-file names a file.
    """
    from fairseq import checkpoint_utils

    replace(checkpoint_utils, "load_checkpoint", _falling_back)
    return True


# ---------------------------------------------------------------------- one training at a time
def _holding(stock: Callable) -> Callable:
    from fairseq.file_io import PathManager

    def load_checkpoint(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_first(trainer) and not cfg.no_save and not PathManager.path_requires_pathmanager(cfg.save_dir):
            if hold(cfg.save_dir):
                _remove_leftovers(cfg.save_dir)
        return stock(cfg, trainer, *args, **kwargs)

    return load_checkpoint


def _letting_go(stock: Callable) -> Callable:
    def call_main(*args: Any, **kwargs: Any) -> Any:
        try:
            return stock(*args, **kwargs)
        finally:
            let_go()

    return call_main


def hold(folder: str) -> bool:
    """Lock the folder for this process, until :func:`let_go` or its end. False where a file system has no locks.

    Raises:
        UsageError: another process holds it.
    """
    path = os.path.realpath(folder)
    if path in _held:
        return True
    os.makedirs(path, exist_ok=True)
    descriptor = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UsageError(
                f"--save-dir {folder}: another training ({holder or 'of unknown name'}) writes into it; wait for its "
                "end, or give another --save-dir"
            ) from error
        logger.warning("--save-dir %s cannot be locked (%s): do not start a second training in it", folder, error)
        return False
    _held[path] = descriptor
    with contextlib.suppress(OSError):  # a full disk: the name is only for the message above
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return True


def let_go() -> None:
    while _held:
        os.close(_held.popitem()[1])


def _is_first(trainer: Any) -> bool:
    from fairseq.distributed import utils as distributed_utils

    return distributed_utils.is_master(trainer.cfg.distributed_training)


def _remove_leftovers(folder: str) -> None:
    """Of a run that was killed during a save; nobody else writes here now."""
    for name in os.listdir(folder):
        if _LEFTOVER.fullmatch(name):
            logger.info("removing %s, which a killed training left unfinished", os.path.join(folder, name))
            os.remove(os.path.join(folder, name))


# ---------------------------------------------------------------------- the newest whole checkpoint
def _falling_back(stock: Callable) -> Callable:
    def load_checkpoint(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        with _restoring(cfg, _other_checkpoint(cfg, trainer)):
            return stock(cfg, trainer, *args, **kwargs)

    return load_checkpoint


def _other_checkpoint(cfg: Any, trainer: Any) -> Optional[str]:
    """What to restore in place of a torn checkpoint_last.pt; the same for every process. None: all is well."""
    from fairseq.distributed import utils as distributed_utils

    if cfg.restore_file != _LAST or trainer.checkpoint_suffix:  # with a suffix, every process has files of its own
        return None
    found = newest_whole(cfg.save_dir) if _is_first(trainer) else None
    if trainer.data_parallel_world_size > 1:
        group = trainer.data_parallel_process_group
        found = distributed_utils.broadcast_object(found, src_rank=0, group=group, dist_device=trainer.device)
    return found


@contextlib.contextmanager
def _restoring(cfg: Any, path: Optional[str]) -> Iterator[None]:
    """The options are those of the user again before any of them is saved."""
    if path is None:
        yield
        return
    given = cfg.restore_file, cfg.finetune_from_model
    cfg.restore_file, cfg.finetune_from_model = path, None  # a training that has begun does not begin again
    try:
        yield
    finally:
        cfg.restore_file, cfg.finetune_from_model = given


def newest_whole(folder: str) -> Optional[str]:
    """The newest checkpoint of `folder` that is whole, where checkpoint_last.pt is not; None where it is, or is absent.

    Raises:
        UsageError: none is whole.
    """
    last = os.path.join(folder, _LAST)
    if not os.path.isfile(last):
        others = _newest_first(folder) if os.path.isdir(folder) else []
        if others:  # killed in its first save, or removed on purpose
            logger.warning("%s is absent: training begins anew (--restore-file %s goes on from there)", last, others[0])
        return None
    if is_whole(last):
        return None
    for path in _newest_first(folder):
        if path != last and is_whole(path):
            logger.warning("%s is torn or damaged: going on from %s, the newest whole one", last, path)
            return path
    raise UsageError(
        f"{last}, {os.path.getsize(last)} bytes, is torn or damaged, and no whole checkpoint lies beside it: remove it "
        "to begin anew, or put a copy in its place"
    )


def _newest_first(folder: str) -> List[str]:
    paths = [os.path.join(folder, name) for name in os.listdir(folder) if _CHECKPOINT.fullmatch(name)]
    return sorted(paths, key=lambda path: (os.stat(path).st_mtime_ns, path), reverse=True)


def is_whole(path: str) -> bool:
    """Whether the file has its end, and the contents that its checksums stand for.

    torch.load verifies no checksum. Files of torch before 1.6 have none: these are taken for whole.
    """
    with open(path, "rb") as file:
        if file.read(1) == b"\x80":  # a pickle
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # damaged bytes can mean anything
        return False
