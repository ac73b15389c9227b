"""What an attention remembers between decoding steps, through fairseq's incremental-state API."""

from typing import Any, Callable, Dict, Optional

from fairseq.incremental_decoding_utils import with_incremental_state
from torch import Tensor, nn

State = Dict[str, Any]


@with_incremental_state
class CachingAttention(nn.Module):
    """Base of the attentions: one state per module, a dict of tensors (or None) whose dimension 0 is the batch."""

    get_incremental_state: Callable[..., Any]  # both from the decorator
    set_incremental_state: Callable[..., Any]

    def reorder_incremental_state(self, incremental_state: Dict[str, State], new_order: Tensor):
        """Called by beam search: keep the rows ``new_order`` of everything that is cached."""
        state = self._get_input_buffer(incremental_state)
        if state:
            state = {k: None if v is None else v.index_select(0, new_order) for k, v in state.items()}
            self._set_input_buffer(incremental_state, state)
        return incremental_state

    # fairseq's decoder layer calls these two by name
    def _get_input_buffer(self, incremental_state: Optional[Dict[str, State]]) -> State:
        return self.get_incremental_state(incremental_state, "attn_state") or {}

    def _set_input_buffer(self, incremental_state: Dict[str, State], buffer: State):
        return self.set_incremental_state(incremental_state, "attn_state", buffer)
