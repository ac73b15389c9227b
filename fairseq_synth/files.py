"""Files that appear whole or not at all."""

import contextlib
import os
from typing import BinaryIO, Iterator

from fairseq_synth.errors import UsageError


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file to write bytes to, which becomes ``path`` when the block ends, and vanishes if the block fails.

    Raises UsageError where it cannot be written.
    """
    part = path + ".part"
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}); give another place") from error
    finally:
        if os.path.exists(part):
            os.remove(part)
