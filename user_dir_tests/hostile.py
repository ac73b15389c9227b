"""Files from a stranger, and every way by which a file is loaded. A file is hostile if it makes the folder MARK."""

import collections
import copy
import io
import os
import pickle
import sys
from argparse import Namespace

import torch
from conftest import USER_DIR, call_command, generate_args, train_args

from fairseq_synth.cli import main as synth_command

LM = ["--decoder-layers", "1", "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "16", "--decoder-input-dim",
      "16", "--decoder-output-dim", "16", "--decoder-attention-heads", "2", "--tokens-per-sample", "16"]  # fmt: skip
QUIET = ["--cpu", "--no-progress-bar", "--num-workers", "0"]


class Command:
    """Pickles to a call of os.mkdir."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def code(mark):
    """An expression that leaves a mark behind, as the value of an option."""
    return f"__import__('os').mkdir({str(mark)!r}) or (5,)"


# ---------------------------------------------------------------------- files: (state of a good file, mark) -> state
def option(name, **others):
    def make(state, mark):
        state["cfg"]["model"].update({name: code(mark), **others})
        return state

    return make


def other_architecture(arch, **options):
    """fairseq's own models of before its dataclasses keep their options in a Namespace."""

    def make(state, mark):
        values = {name: code(mark) if value == "CODE" else value for name, value in options.items()}
        state["cfg"]["model"] = Namespace(_name=arch, arch=arch, **values)
        return state

    return make


def transformer(state, mark):
    """fairseq's own."""
    stored = {**state["cfg"]["model"], "_name": "transformer", "arch": "transformer"}
    state["cfg"]["model"] = Namespace(**{**stored, "adaptive_softmax_cutoff": code(mark)})
    return state


def old_options(state, mark):
    """Of before the nested configuration: one Namespace for everything."""
    flat = {**vars(transformer(state, mark)["cfg"]["model"]), **state["cfg"]["task"]}
    names = {"task": "translation", "criterion": "cross_entropy", "optimizer": "adam", "lr_scheduler": "fixed"}
    state["args"] = Namespace(**{**flat, **names, "max_source_positions": 99, "max_target_positions": 99})
    del state["cfg"]
    return state


def interpolation(state, mark):
    """No code, but the reader's environment."""
    state["cfg"]["task"]["data"] = "${oc.env:HOME}"
    return state


def criterion(state, mark):
    state["cfg"]["criterion"] = {"_name": "ctc", "wer_args": code(mark), "sentence_avg": False, "zero_infinity": False,
                                 "post_process": "letter", "wer_kenlm_model": None, "wer_lexicon": None,
                                 "wer_lm_weight": 2.0, "wer_word_score": -1.0}  # fmt: skip
    return state


def pickled(place):
    def make(state, mark):
        if place == "model":
            state["model"]["more"] = Command(mark)
        elif place == "options":
            state["cfg"]["model"]["more"] = Command(mark)
        else:
            state["more"] = Command(mark)
        return state

    return make


def plugin(state, mark):
    """A plugin beside the file, named as the one to import."""
    folder = mark.parent / f"plugin_{mark.name}"
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    state["cfg"]["common"]["user_dir"] = str(folder)
    return state


KINDS = {
    "transformer": transformer,
    "softmax": option("adaptive_softmax_cutoff"),
    "input": option("adaptive_input_cutoff", adaptive_input=True),
    "fconv": other_architecture("fconv", encoder_layers="CODE", decoder_layers="CODE", decoder_attention="CODE"),
    "lightconv": other_architecture(
        "lightconv",
        adaptive_softmax_cutoff="CODE",
        encoder_conv_type="lightweight",
        decoder_conv_type="lightweight",
        weight_softmax=True,
    ),
    "lstm": other_architecture("lstm", adaptive_softmax_cutoff="CODE", criterion="adaptive_loss"),
    "wav2vec": other_architecture("wav2vec", conv_feature_layers="CODE", conv_aggregator_layers="CODE"),
    "interpolation": interpolation,
    "args": old_options,
    "criterion": criterion,
    "pickled model": pickled("model"),
    "pickled options": pickled("options"),
    "pickled beside": pickled("beside"),
    "plugin": plugin,
}


def save(state, path, legacy=False):
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def old_format(state, mark):
    """The five pickles of torch before 1.6, the last of which runs a command."""
    file = io.BytesIO()
    torch.save({"model": collections.OrderedDict()}, file, _use_new_zipfile_serialization=False)
    parts, rest = [], io.BytesIO(file.getvalue())
    for _ in range(3):  # magic number, protocol, system
        parts.append(pickle.load(rest))
    return b"".join(pickle.dumps(part, 2) for part in [*parts, Command(mark), []])


def write(kind, state, path, mark):
    if kind == "old format":
        path.write_bytes(old_format(state, mark))
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Command(mark)))
    elif kind == "old pickled":
        save(pickled("beside")(copy.deepcopy(state), mark), path, legacy=True)
    else:
        save(KINDS[kind](copy.deepcopy(state), mark), path)
    return path


FILES = [*KINDS, "old format", "plain pickle", "old pickled"]
SOME = ["transformer", "args", "plugin", "pickled model", "pickled options", "old format", "plain pickle"]


# ---------------------------------------------------------------------- load paths: (place, file, output folder)
class Place:
    """data, blocks: binarised pairs and text; good, good_lm: checkpoints that load."""

    def __init__(self, data, blocks, good, good_lm):
        self.data, self.blocks, self.good, self.good_lm = data, blocks, good, good_lm


def resume(place, file, out):
    call_command("train", *train_args(place.data, out, "--freeze", "ffn", "--restore-file", file, updates=2))


def finetune(place, file, out):
    call_command("train", *train_args(place.data, out, "--finetune-from-model", file, updates=1))


def generate(place, file, out):
    call_command("generate", *generate_args(place.data, file))


def ensemble(place, file, out):
    call_command("generate", *generate_args(place.data, f"{place.good}:{file}"))


def with_language_model(place, file, out):
    call_command("generate", *generate_args(place.data, place.good, "--lm-path", file, "--lm-weight", "0.1"))


def interactive(place, file, out):
    before = sys.stdin
    sys.stdin = io.StringIO("w1 w2\n")
    try:
        call_command("interactive", place.data, "--path", file, "--user-dir", USER_DIR, *QUIET)
    finally:
        sys.stdin = before


def validate(place, file, out):
    call_command("validate", place.data, "--path", file, "--task", "translation", "--user-dir", USER_DIR,
                 "--max-tokens", "200", *QUIET)  # fmt: skip


def eval_lm(place, file, out):
    call_command("eval_lm", place.blocks, "--path", file, "--user-dir", USER_DIR, "--tokens-per-sample", "16",
                 "--max-tokens", "200", *QUIET)  # fmt: skip


def command(*arguments):
    status = synth_command([str(argument) for argument in arguments])
    if status:
        raise SystemExit(status)


def inspect(place, file, out):
    command("inspect", file)


def plot(place, file, out):
    (out / "text").write_text("w1 w2\n")
    command("plot", file, "--text", out / "text", "--data", place.data, "--out", out / "figures")


def average(place, file, out):
    command("average", "--inputs", place.good, file, "--output", out / "average.pt")


def materialize(place, file, out):
    command("materialize", file, "--output", out / "full.pt")


def diff_frozen(place, file, out):
    command("diff-frozen", file, file)


def diff_with(place, file, out):
    command("diff-frozen", place.good, file)


PATHS = {path.__name__: path for path in (resume, finetune, generate, ensemble, with_language_model, interactive,
         validate, eval_lm, inspect, plot, average, materialize, diff_frozen, diff_with)}  # fmt: skip
# those that differ in what they read, not in how
CHEAP = ("generate", "inspect", "average", "materialize", "diff_frozen")


def matrix(long):
    """(kind, path): all of them, or those that can be had in a minute."""
    pairs = [(kind, path) for kind in FILES for path in PATHS]
    one = {("criterion", "validate"), ("input", "eval_lm")}
    return [(k, p) for k, p in pairs if long or p in CHEAP or k in SOME or (k, p) in one]
