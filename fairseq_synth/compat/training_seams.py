"""PLACEHOLDER until the commands wing is merged."""

from typing import Any, Callable, List

AFTER_LOSS: List[Callable[[Any, Any, Any], Any]] = []
