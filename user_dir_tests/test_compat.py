"""Each repair of fairseq: what fails without it, on the versions that need it."""

import argparse
import io
import os
import re
import zipfile

import numpy as np
import pytest
import torch
from builders import torchrun
from compat_commands import (
    SPLITS,
    USER_DIR,
    call,
    generate_arguments,
    hypotheses,
    run,
    succeed,
    train_arguments,
    weights,
    workplace,
)
from fairseq.data import FairseqDataset, data_utils
from fairseq.version import __version__ as fairseq_version

from fairseq_synth import compat
from fairseq_synth.compat import patching
from fairseq_synth.errors import UsageError

NUMPY_VERSION = tuple(int(n) for n in np.__version__.split(".")[:2])
TORCH_VERSION = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
HAS_FAST_PATH = fairseq_version.startswith("0.12.2")


def only_on(condition, needed):
    """A test of a fix that other versions do not need: skipped there, saying so."""
    versions = f"fairseq {fairseq_version}, torch {torch.__version__}, numpy {np.__version__}"
    return pytest.mark.skipif(not condition, reason=f"needs {needed}; here: {versions}")


safe_loading = only_on(TORCH_VERSION >= (2, 6), "torch >= 2.6, which loads with weights_only")
drops_sentences = only_on(not HAS_FAST_PATH, "a fairseq newer than 0.12.2, which drops sentences")
fused_encoder = only_on(HAS_FAST_PATH, "fairseq 0.12.2, which has the fused encoder")


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.mktemp("compat"))


# All fixes together


def test_every_fix_is_described_and_names_the_audit_or_versions():
    reports = compat.describe()
    assert [report.name for report in reports] == [fix.__name__ for fix in compat.FIXES]
    assert {report.name for report in reports if report.applied} == set(compat.APPLIED)
    for fix in compat.FIXES:
        named = r"Items? \d|[Aa]ll fairseq versions|every version|torch < 2\.\d+|fairseq 0\.12\.2"
        assert re.search(named, fix.__doc__), fix.__name__


def test_applying_twice_changes_nothing_more():
    before = (data_utils.batch_by_size, dict(compat.APPLIED))
    compat.apply()
    for fix in compat.FIXES:
        fix()
    assert (data_utils.batch_by_size, dict(compat.APPLIED)) == before


def test_replace_wraps_once_and_keeps_class_methods():
    class Owner:
        @classmethod
        def name(cls):
            return cls.__name__

    for _ in range(2):
        patching.replace(Owner, "name", lambda stock: lambda cls: "the " + stock(cls))
    assert Owner.name() == "the Owner"


# Checkpoints


class Payload:
    """Runs `function(*arguments)` when unpickled without protection."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@safe_loading
@pytest.mark.parametrize("kind", ["os.system", "builtins.eval", "builtins.getattr"])
def test_a_checkpoint_with_code_is_refused_and_the_code_does_not_run(kind, tmp_path):
    proof = tmp_path / "executed"
    payload = {
        "os.system": Payload(os.system, f"touch {proof}"),
        "builtins.eval": Payload(eval, f"open({str(proof)!r}, 'w')"),
        "builtins.getattr": Payload(getattr, "text", "upper"),
    }[kind]
    torch.save({"args": argparse.Namespace(), "model": payload}, tmp_path / "bad.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "bad.pt")
    assert not proof.exists()


@safe_loading
def test_namespace_and_numpy_objects_load_from_either_numpy_spelling():
    array, scalar = np.array([3, 1], dtype=np.int64), np.float64(0.5)
    state = {"args": argparse.Namespace(arch="transformer"), "meters": [array, scalar]}
    written = _saved(state)
    for old, new in ((b"", b""), (b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
        loaded = torch.load(_respelled(written, old, new) if old else io.BytesIO(written))
        assert loaded["args"] == state["args"]
        assert loaded["meters"][0].tolist() == [3, 1] and loaded["meters"][1] == 0.5


def _saved(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def _respelled(written, old, new):
    """The same checkpoint as another numpy would have pickled it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(written)) as source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(old, new))
    stream.seek(0)
    return stream


@only_on(not HAS_FAST_PATH, "a fairseq newer than 0.12.2, which must read 0.12.2's files")
def test_duplicates_saved_by_an_old_encoder_are_dropped():
    from fairseq.models.transformer import TransformerConfig
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    config = TransformerConfig.from_namespace(argparse.Namespace(encoder_embed_dim=8))
    layer = TransformerEncoderLayerBase(config)
    state = {f"layers.0.{name}": tensor for name, tensor in layer.state_dict().items()}
    wanted = set(state)
    for module in ("in_proj", "out_proj", "fc1", "fc2"):
        state.update({f"layers.0.{module}_{kind}": torch.zeros(1) for kind in ("weight", "bias")})
    layer.upgrade_state_dict_named(state, "layers.0")
    assert set(state) == wanted


# numpy


@only_on(NUMPY_VERSION >= (2, 0), "numpy >= 2, which has no np.compat")
def test_token_blocks_of_one_sentence_each():
    from fairseq.data import TokenBlockDataset

    sentences = [torch.tensor([5, 6, 2]), torch.tensor([7, 2])]
    blocks = TokenBlockDataset(sentences, [3, 2], None, pad=1, eos=2, break_mode="eos")
    assert [block.tolist() for block in blocks] == [[5, 6, 2], [7, 2]]


def test_length_buckets_are_the_lower_percentiles():
    from fairseq.data import bucket_pad_length_dataset

    for module in (data_utils, bucket_pad_length_dataset):
        assert module.get_buckets(np.array([1, 2, 3, 4, 5]), 2).tolist() == [3, 5]


# Every sentence counts


def batches_of(sizes, multiple=8, **limits):
    """Batches of sentences 0, 1, ... as fairseq makes them."""
    sizes = np.array(sizes, dtype=np.int64)
    arguments = {"num_tokens_vec": sizes, "required_batch_size_multiple": multiple, **limits}
    return data_utils.batch_by_size(np.arange(len(sizes)), sizes.__getitem__, **arguments)


@pytest.mark.parametrize("count", [1, 5, 7, 8, 9, 1003])
@pytest.mark.parametrize("limits", [{}, {"max_tokens": 100}, {"max_sentences": 16}])
def test_batches_hold_every_sentence_once_in_order(count, limits):
    batches = batches_of(np.sort(np.arange(count) % 12 + 1), **limits)
    assert np.concatenate(batches).tolist() == list(range(count))


def test_the_remainder_respects_both_limits():
    sizes = [10] * 16 + [30, 31, 32, 33, 34]
    for batch in batches_of(sizes, max_tokens=64, max_sentences=4):
        assert len(batch) <= 4 and len(batch) * max(sizes[i] for i in batch) <= 64


def test_long_sentences_in_the_remainder_get_batches_of_their_own():
    batches = batches_of([4] * 8 + [60] * 3, max_tokens=64)
    assert [len(batch) for batch in batches] == [8, 1, 1, 1]


def test_no_sentences_make_no_batches():
    assert len(batches_of([])) == 0


@pytest.mark.parametrize("split, execute", [("five", succeed), ("large", call)])
def test_generate_translates_every_sentence(place, split, execute):
    checkpoint = place / "mt" / "checkpoint_last.pt"
    text = execute("generate", *generate_arguments(place / "pairs", checkpoint, split))
    assert hypotheses(text) == SPLITS[split][0]
    assert f"Translated {SPLITS[split][0]:,} sentences" in text
    if execute is succeed:  # a process of its own
        assert text.count("fairseq fixes in effect") == 1


def validation_loss(place, *extra, execute=call):
    """The loss fairseq-validate reports for 13 sentences."""
    arguments = (place / "pairs", "--path", place / "mt" / "checkpoint_last.pt", "--cpu")
    options = ("--task", "translation", "--num-workers", 0, "--log-format", "json")
    text = execute("validate", *arguments, *options, "--max-sentences", 4, *extra)
    return float(re.search(r'"valid_loss": "([\d.]+)"', text).group(1))


def test_validation_counts_every_sentence(place):
    """The loss of the default batches equals that of batches without a required multiple."""
    assert validation_loss(place, "--max-sentences", 16) == validation_loss(
        place, "--max-sentences", 16, "--required-batch-size-multiple", 1
    )


def test_an_empty_test_set_is_one_clear_line(place):
    checkpoint = place / "mt" / "checkpoint_last.pt"
    result = run("generate", *generate_arguments(place / "pairs", checkpoint, "empty"))
    assert result.status == 1
    assert result.last_error_line.startswith("fairseq_synth: error: dataset ")
    assert "test2.de-en.de holds 0 sentences" in result.last_error_line


class Sentences(FairseqDataset):
    """Nothing but lengths."""

    def __init__(self, sizes):
        self.sizes = np.array(sizes, dtype=np.int64)

    def __len__(self):
        return len(self.sizes)

    def size(self, index):
        return self.sizes[index]


@pytest.mark.parametrize("dropped", [False, True])
def test_an_empty_split_of_any_format_is_refused(dropped):
    from fairseq.tasks.fairseq_task import FairseqTask

    task = FairseqTask(argparse.Namespace())
    task.datasets["odd"] = Sentences([9, 8] if dropped else [])
    expected = "all 2 sentences of split 'odd'.*limit of 4" if dropped else "split 'odd' holds 0"
    with pytest.raises(ValueError, match=expected):
        task.get_batch_iterator(task.datasets["odd"], max_positions=4, ignore_invalid_inputs=True)


# eval-lm


def evaluate_blocks(place, *extra):
    checkpoint = place / "lm" / "checkpoint_last.pt"
    return call("eval_lm", place / "blocks", "--path", checkpoint, "--cpu", *extra)


def test_eval_lm_refuses_blocks_longer_than_the_model(place):
    expected = "^--tokens-per-sample 1024: .* limit of 16 .* pass --tokens-per-sample 16$"
    with pytest.raises(UsageError, match=expected):
        evaluate_blocks(place)


def test_eval_lm_counts_every_token_with_the_advised_length(place):
    text = evaluate_blocks(place, "--tokens-per-sample", 16)
    tokens = sum(len(line.split()) + 1 for line in open(place / "large.de"))
    assert f"Evaluated {tokens:,} tokens" in text


def test_eval_lm_refuses_whole_sentences_longer_than_the_model():
    from fairseq.tasks.language_modeling import LanguageModelingTask

    task = LanguageModelingTask.__new__(LanguageModelingTask)
    task.args = argparse.Namespace(tokens_per_sample=16, sample_break_mode="eos")
    with pytest.raises(ValueError, match="1 of 2 blocks.*pass --sample-break-mode none"):
        task.eval_lm_dataloader(Sentences([5, 20]), max_positions=16)


# Half precision


def test_bf16_trains_on_a_cpu(place, tmp_path):
    arguments = train_arguments(place / "pairs", tmp_path, "--max-sentences", 8, "--bf16")
    call("train", *arguments)
    for name, tensor in weights(tmp_path / "checkpoint_last.pt").items():
        # Saved as float32, with values that bfloat16 can hold.
        assert torch.equal(tensor, tensor.bfloat16().to(tensor.dtype)), name


def test_fp16_on_a_cpu_is_one_clear_line(place, tmp_path):
    arguments = train_arguments(place / "pairs", tmp_path, "--max-sentences", 8, "--fp16")
    with pytest.raises(UsageError, match="^--fp16 on a CPU: .* use --bf16"):
        call("train", *arguments)


# The fused encoder of 0.12.2


@fused_encoder
def test_encoder_layers_do_not_take_the_fused_path():
    from fairseq.models.transformer import TransformerConfig
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    config = TransformerConfig.from_namespace(argparse.Namespace(encoder_embed_dim=8))
    layer = TransformerEncoderLayerBase(config)
    layer.load_state_dict(layer.state_dict())
    padding = torch.tensor([[True, False]])
    assert layer.eval()(torch.ones(2, 1, 8), padding).shape == (2, 1, 8)


# What is printed


WARNING = r"\w*Warning: .*"


@pytest.fixture(scope="module")
def first_words():
    """What fairseq's own import warns of: its commands say so before they know of a user directory."""
    return re.findall(WARNING, succeed("preprocess", "--help", plugin=False))


def test_known_warnings_are_hushed(place, tmp_path, first_words):
    text = succeed("train", *train_arguments(place / "pairs", tmp_path, "--max-sentences", 8))
    assert re.findall(WARNING, text) == first_words


HYDRA_CONFIG = """
common: {user_dir: %s, cpu: true}
task: {_name: translation, data: %s}
model: {_name: transformer}
criterion: {_name: cross_entropy}
dataset: {batch_size: 8}
optimization: {lr: [0.1]}
optimizer: {_name: adam}
lr_scheduler: {_name: fixed}
"""


def test_hydra_train_ends_with_the_explanation(tmp_path):
    (tmp_path / "tiny.yaml").write_text(HYDRA_CONFIG % (USER_DIR, tmp_path / "nowhere"))
    arguments = ("--config-dir", tmp_path, "--config-name", "tiny", f"hydra.run.dir={tmp_path}")
    result = run("hydra_train", *arguments, plugin=False)
    assert result.status == 1
    assert result.last_error_line.startswith("fairseq_synth: error: data folder: ")


# Data-parallel training on CPUs


# 0.12.2 saves an uninitialised tensor, and copies for the fused encoder as of the last loading.
NOT_TRAINED = re.compile(r"\._float_tensor$|(in_proj|out_proj|fc1|fc2)_(weight|bias)$")


@pytest.fixture(scope="session")
def one_process(place):
    """Four updates of two batches each, by one process: the same global batches as two ranks."""
    folder = place / "one"
    extra = ("--max-sentences", 4, "--update-freq", 2)
    call("train", *train_arguments(place / "pairs", folder, *extra, updates=4))
    return weights(folder / "checkpoint_last.pt")


def assert_same_weights(checkpoint, expected):
    trained = weights(checkpoint)
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        if HAS_FAST_PATH and NOT_TRAINED.search(name):
            continue
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_torchrun_on_cpus_trains_one_model(place, one_process, tmp_path, first_words):
    """Two updates with one back end, then two with the other: rank 0 sends the checkpoint to 1."""
    for updates, backend in ((2, "legacy_ddp"), (4, "pytorch_ddp")):
        extra = ("--max-sentences", 4, "--ddp-backend", backend)
        arguments = train_arguments(place / "pairs", tmp_path, *extra, updates=updates)
        text = succeed("train", *arguments, launcher=torchrun())
        assert text.count("training on 2 devices") == 1
        assert re.findall(WARNING, text) == first_words * 2  # of every worker
    assert "Loaded checkpoint" in text
    assert_same_weights(tmp_path / "checkpoint_last.pt", one_process)


def test_validate_on_two_cpu_processes_gathers_all_losses(place):
    printed = []

    def two_processes(*arguments):
        printed.append(succeed(*arguments, launcher=torchrun()))
        return printed[-1]

    together = validation_loss(place, execute=two_processes)
    assert "as rank 1" in printed[0]  # not two validations of everything
    assert together == pytest.approx(validation_loss(place), abs=1e-3)
