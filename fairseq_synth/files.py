"""Files that are there whole or not at all, whatever happens while they are written."""

import contextlib
import io
import os
from typing import BinaryIO, Iterator, Optional

from fairseq_synth.errors import UsageError
from fairseq_synth.errors.rules import DISK_IS_FULL, full_disk

# What a file is called while it is written (fairseq's own name for it).
SUFFIX = ".tmp"


@contextlib.contextmanager
def whole_file(path: str, explain: bool = True) -> Iterator[BinaryIO]:
    """A file to write bytes to. It becomes `path` at the end of the block, and vanishes if the block fails.

    explain: False leaves an OSError what it is, for callers that try again.

    Raises:
        UsageError: the disk is full, or (``explain``) it cannot be written.
    """
    part = path + SUFFIX
    raw: Optional[_File] = None
    try:
        raw = _File(part)
        with io.BufferedWriter(raw, 2**20) as file:
            yield file
            file.flush()
            os.fsync(raw.fileno())  # or a crash of the machine leaves the new name with no contents
        os.replace(part, path)
        _sync_folder(os.path.dirname(os.path.abspath(path)))
    except BaseException as error:
        _remove(part)
        if full_disk(error) or (raw is not None and raw.full):
            raise UsageError(f"{path}: {DISK_IS_FULL}; earlier files are unharmed") from error
        if explain and isinstance(error, OSError):
            raise UsageError(f"{path}: cannot be written ({error.strerror or error}); give another place") from error
        raise


class _File(io.FileIO):
    """Remembers that the disk was full: torch.save reports it as "unexpected pos", or in other ways."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "w")
        self.full = False

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.full = self.full or full_disk(error) is not None
            raise


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)


def _sync_folder(path: str) -> None:
    """The new name itself. Not every file system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
