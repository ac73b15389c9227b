"""Where an attention stands in a model, read off the name of a module or parameter."""

import re
from typing import NamedTuple, Optional


class Place(NamedTuple):
    """side: encoder or decoder; kind: self or cross; layer: from 0, the bottom."""

    side: str
    kind: str
    layer: int

    @property
    def group(self) -> str:
        """The attentions that belong in one picture."""
        return f"{self.side} {self.kind}-attention"


def place_of(name: str) -> Optional[Place]:
    """From a module's or parameter's name; None outside of layers."""
    found = re.search(r"(?:(encoder|decoder)\.)?layers\.(\d+)\.(self_attn|encoder_attn)", name)
    if not found:
        return None
    return Place(found.group(1) or "decoder", "self" if found.group(3) == "self_attn" else "cross", int(found.group(2)))
