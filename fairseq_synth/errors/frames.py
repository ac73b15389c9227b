"""Where an exception came through: what its message does not say."""

import traceback
from typing import Any, List


def frames(exc: BaseException) -> List[Any]:
    """The frames the exception came through, innermost first."""
    return [frame for frame, _ in traceback.walk_tb(exc.__traceback__)][::-1]


def called(exc: BaseException, function: str) -> bool:
    return any(frame.f_code.co_name == function for frame in frames(exc))


def raised_inside(exc: BaseException, module: str) -> bool:
    return any(frame.f_globals.get("__name__") == module for frame in frames(exc))
