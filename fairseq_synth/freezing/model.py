"""What a model with ``--freeze`` does at fairseq's seams: report, verify, save, load.

Parameters are frozen in ``build_model``, after their initialisation and before any optimizer exists. The digest is
taken when training begins (after a checkpoint was loaded, in the precision of the training) and compared before
every validation and every save; the record in the checkpoint is compared whenever it is loaded.
"""

import contextlib
import copy
import logging
from typing import Any, Dict, Iterator, Optional, Tuple

from torch import Tensor

from fairseq_synth.compat.training_seams import unwrapped
from fairseq_synth.errors import UsageError
from fairseq_synth.freezing import record as records
from fairseq_synth.freezing.digest import combine, moved, tensor_digest
from fairseq_synth.freezing.dropout import switch_off
from fairseq_synth.freezing.gradients import keep_gradients
from fairseq_synth.freezing.groups import select
from fairseq_synth.freezing.report import table

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def bare_state(*models: Any) -> Iterator[None]:
    """Inside, state dicts of these models hold tensors only: no record is made or verified.

    Models of other kinds, and None, are let through.
    """
    found = [model for model in map(freezes, models) if model is not None]
    before = [model.bare_state for model in found]
    for model in found:
        model.bare_state = True
    try:
        yield
    finally:
        for model, value in zip(found, before):
            model.bare_state = value


def freeze_model(model: "FreezingMixin", cfg: Any) -> None:
    """Freeze what ``cfg.freeze`` names. Raises UsageError for options that cannot work or have no effect."""
    if cfg.freeze is None:
        if str(cfg.frozen_dropout) != "keep":
            raise UsageError(f"--frozen-dropout {cfg.frozen_dropout}: has no effect without --freeze; add or drop one")
        return
    noise = getattr(getattr(cfg, "quant_noise", None), "pq", 0)
    if noise:
        raise UsageError(f"--quant-noise-pq {noise}: rewrites weights in every update, those of --freeze too; drop one")
    names = select(model, cfg.freeze)  # type: ignore[arg-type]
    parameters = dict(model.named_parameters())  # type: ignore[attr-defined]
    if any("flat_param" in name for name in parameters):
        raise UsageError("--freeze: --ddp-backend fully_sharded joins parameters before they are frozen; take another")
    for name in names:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UsageError(f"--freeze {cfg.freeze}: nothing is left to train; leave a group out")
    model.frozen_spec, model.frozen_parameters = cfg.freeze, tuple(names)
    keep_gradients(model)  # type: ignore[arg-type]
    if str(cfg.frozen_dropout) == "remove":
        switch_off(model, cfg.freeze)  # type: ignore[arg-type]


class FreezingMixin:
    """For a fairseq model, before its base class."""

    frozen_spec: Optional[str] = None
    frozen_parameters: Tuple[str, ...] = ()
    # the checkpoint file whose optimizer state is about to be loaded: its frozen set must be this model's
    resumed_from: Optional[str] = None
    # see the function of this name
    bare_state: bool = False
    _frozen_digests: Optional[Dict[str, str]] = None

    def frozen_tensors(self: Any) -> Dict[str, Tensor]:
        frozen = set(self.frozen_parameters)
        return {name: parameter.detach() for name, parameter in self.named_parameters() if name in frozen}

    # ------------------------------------------------------------------ proof that nothing moved
    def check_frozen(self) -> Dict[str, str]:
        """The digest of every frozen tensor. Raises UsageError if one has moved since training began."""
        digests = {name: tensor_digest(tensor) for name, tensor in self.frozen_tensors().items()}
        changed = moved(self._frozen_digests, digests) if self._frozen_digests is not None else {}
        if changed:
            name, what = sorted(changed.items())[0]
            raise UsageError(
                f"--freeze {self.frozen_spec}: {name} {what} during training ({len(changed)} of {len(digests)} frozen "
                f"tensors changed): something other than the optimizer writes weights; the checkpoint is not written"
            )
        return digests

    def train(self: Any, mode: bool = True) -> Any:
        if self.frozen_parameters and mode and self._frozen_digests is None:
            self._frozen_digests = self.check_frozen()
            logger.info(f"--freeze {self.frozen_spec}\n{table(self)}")
            logger.info(f"frozen: {len(self._frozen_digests)} tensors, SHA-256 {combine(self._frozen_digests)}")
        elif not mode and self.training and self._frozen_digests is not None:
            self.check_frozen()
        return super().train(mode)  # type: ignore[misc]

    def _apply(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Other precision, other digest: .half() and its kin."""
        started = self._frozen_digests is not None
        if started:
            self.check_frozen()
        self._frozen_digests = None
        super()._apply(*args, **kwargs)  # type: ignore[misc]
        self._frozen_digests = self.check_frozen() if started else None
        return self

    # ------------------------------------------------------------------ checkpoints
    def frozen_record(self) -> Dict[str, Any]:
        digest = combine(self.check_frozen())
        return {"freeze": self.frozen_spec, "names": list(self.frozen_parameters), "digest": digest}

    def state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As nn.Module's, with the record of what is frozen. Raises UsageError if a frozen tensor moved."""
        state = super().state_dict(*args, **kwargs)  # type: ignore[misc]
        if self.frozen_parameters and not self.bare_state:
            prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
            state[prefix + records.KEY] = records.encode(self.frozen_record())
        return state

    def load_state_dict(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's. Raises UsageError for frozen tensors that are not what was saved, and, on resuming, for
        another frozen set."""
        if not self.bare_state:
            state_dict = copy.copy(state_dict)
            record = records.decode(state_dict.pop(records.KEY, None))
            self._check_same_set(record)
            self._verify(record, state_dict)
            self._frozen_digests = None
        return super().load_state_dict(state_dict, *args, **kwargs)  # type: ignore[misc]

    def _verify(self, record: Optional[Dict[str, Any]], state_dict: Any) -> None:
        if record is not None:
            records.verify(record, state_dict)
            logger.info(f"verified {len(record['names'])} frozen tensors, SHA-256 {record['digest']}")
        elif self.frozen_parameters:
            logger.info("frozen parameters are not verified: the checkpoint has no record of them")

    def _check_same_set(self, record: Optional[Dict[str, Any]]) -> None:
        """The optimizer's state belongs to the parameters that were trained."""
        before = set(record["names"]) if record else set()
        if self.resumed_from is None or before == set(self.frozen_parameters):
            return
        now = f"--freeze {self.frozen_spec}" if self.frozen_spec else "no --freeze"
        then = f"--freeze {record['freeze']}" if record else "no --freeze"
        raise UsageError(
            f"{now}: {self.resumed_from} was trained with {then}, and so was its optimizer; give that again, or "
            f"--reset-optimizer to go on with other frozen parts, or --finetune-from-model in a new --save-dir"
        )


def freezes(model: Any) -> Optional[FreezingMixin]:
    """The model inside fairseq's wrappers, if it is one of this package."""
    model = unwrapped(model)
    return model if isinstance(model, FreezingMixin) else None
