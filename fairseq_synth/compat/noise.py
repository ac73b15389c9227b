"""What fairseq and hydra print, and what they hide."""

import os
import warnings

# Category and beginning of each message, as warnings.filterwarnings matches them.
KNOWN_WARNINGS = (
    (UserWarning, r"hydra\.experimental\.(initialize|compose)\(\) is no longer experimental"),
    (UserWarning, r"\s*The version_base parameter is not specified"),
    (
        UserWarning,
        r"In 'config': Usage of deprecated keyword in package header '# @package _group_'",
    ),
    (UserWarning, r"\s*'config' is validated against ConfigStore schema with the same name"),
    (UserWarning, r"\s*The strict flag in the compose API is deprecated"),
    (UserWarning, r"'pin_memory' argument is set as true but no accelerator is found"),
    (UserWarning, r"Support for mismatched key_padding_mask and attn_mask is deprecated"),
    (FutureWarning, r"`torch\.cuda\.amp\.autocast\(args\.\.\.\)` is deprecated"),
    (FutureWarning, r"`torch\.jit\.script` is deprecated\. Please switch to"),
    (FutureWarning, r"`broadcast_buffers` is deprecated\. Use `forward_sync_buffers` instead"),
)


def hush_known_warnings() -> bool:
    """Warnings in every run about fairseq's own calls into hydra and torch, hushed by message.

    All fairseq versions; with torch 2.14 ten. A user can act on none of them; any other warning still shows. What
    fairseq's commands print before they import a user directory is out of reach: with torch 2.14, once per process,
    that torch.jit.script is deprecated.
    """
    for category, message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    return True


def show_hydra_errors() -> bool:
    """hydra shortens an error's trace, and hydra 1.0 on Python >= 3.10 hides the error altogether.

    Item 19; all fairseq versions under fairseq-hydra-train. With HYDRA_FULL_ERROR set the exception
    reaches the interpreter, and with it the one-line messages of this package. A value set by the
    user is kept.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    return True
