"""The few repairs that fairseq needs on current Python, PyTorch and numpy, and the seams that it lacks.

Each fix is one function: its docstring names the affected versions and the cause (item numbers are
those of the project's fairseq audit), it changes fairseq only where the running versions need it,
and it returns whether they do. :func:`apply` runs them all; every fix may run twice without
wrapping anything twice.
"""

import logging
from typing import Callable, Dict, List, NamedTuple, Tuple

from . import (
    batching,
    binarised,
    checkpoint_content,
    checkpoints,
    cpu_distributed,
    criterions,
    encoder_fast_path,
    noise,
    numpy_api,
    plain_loading,
    precision,
    resume,
    save_dir,
    saving,
    signals,
    stored_options,
    text_input,
    training_seams,
)

__all__ = ["APPLIED", "FIXES", "FixReport", "apply", "describe"]

logger = logging.getLogger(__name__)

FIXES: Tuple[Callable[[], bool], ...] = (
    checkpoints.allow_fairseq_checkpoints,
    plain_loading.read_plain_data_only,
    stored_options.evaluate_literals_only,
    stored_options.refuse_stored_interpolation,
    stored_options.refuse_stored_sizes,
    checkpoint_content.refuse_strange_checkpoints,  # after these: it looks first
    stored_options.restore_known_meters,
    encoder_fast_path.drop_fast_path_duplicates,
    numpy_api.restore_np_compat,
    numpy_api.restore_percentile_buckets,
    batching.keep_last_batch,
    binarised.refuse_damaged_data,
    binarised.refuse_missing_targets,
    batching.refuse_empty_data,
    batching.refuse_dropped_blocks,
    cpu_distributed.join_cpu_torchrun,
    cpu_distributed.allow_ddp_on_cpu,
    cpu_distributed.gather_objects_on_cpu,
    precision.keep_bf16_off_tpu,
    precision.refuse_flat_fp16_on_cpu,
    encoder_fast_path.disable_encoder_fast_path,
    criterions.introduce_the_model,
    training_seams.step_in_around_loading,
    training_seams.step_in_around_averages,
    training_seams.step_in_after_loss,
    resume.make_batches_every_epoch,
    resume.keep_float32_weights,
    resume.keep_all_counters,
    resume.stop_where_training_ended,
    saving.write_checkpoints_whole,
    saving.write_in_the_background,
    saving.gather_before_saving,
    text_input.read_any_bytes,
    # the later ones step in first: what is written is sealed, the folder is locked before anything in it is read
    checkpoint_content.store_tensor_digests,
    signals.finish_the_update,
    save_dir.restore_a_whole_checkpoint,
    save_dir.hold_save_dir,
    noise.hush_known_warnings,
    noise.show_hydra_errors,
)

# Name of each fix in effect in this process -> why it is needed.
APPLIED: Dict[str, str] = {}


class FixReport(NamedTuple):
    """One line of `describe()`: the fix, whether the running versions need it, and why it exists."""

    name: str
    applied: bool
    reason: str


def apply() -> None:
    """Apply the fixes that the running versions need, and log once which ones those are."""
    if APPLIED:
        return
    APPLIED.update({fix.__name__: _reason(fix) for fix in FIXES if fix()})
    logger.info("fairseq fixes in effect: %s", ", ".join(APPLIED))


def describe() -> List[FixReport]:
    """Every fix, applied or not, in the order of application."""
    return [FixReport(fix.__name__, fix.__name__ in APPLIED, _reason(fix)) for fix in FIXES]


def _reason(fix: Callable[[], bool]) -> str:
    return (fix.__doc__ or "").strip().splitlines()[0]
