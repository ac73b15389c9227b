"""--freeze through the real commands: nothing frozen moves, resume, fine-tuning, averaging, precision, workers."""

import re

import pytest
import torch
from builders import LANGUAGE_MODELS, half_layer_norm, hypotheses, torchrun
from compat_commands import succeed
from conftest import TINY, USER_DIR, call_command, generate_args, line_of, run_command, train_args
from fairseq import checkpoint_utils

from fairseq_synth.cli import main as synth_command
from fairseq_synth.errors import explain
from fairseq_synth.freezing import digest, record

SHORT = ["--synthesizer-max-length", "32", "--weight-decay", "0.1"]


def train(data, folder, *extra, **options):
    return call_command("train", *train_args(data, folder, *SHORT, *extra, **options))


def weights(checkpoint):
    return checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))["model"]


def frozen_part(checkpoint):
    """(record, frozen tensors) of a checkpoint."""
    state = weights(checkpoint)
    found = record.decode(state[record.KEY])
    return found, {name: state[name] for name in found["names"]}


def logged_digest(printed):
    return re.findall(r"^frozen: \d+ tensors, SHA-256 ([0-9a-f]{64})$", printed, re.M)[-1]


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fails(*args, **options):
    """The line that a user sees for a training that must fail."""
    return line_of(train, *args, **options)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Two updates with a frozen feed-forward: (folder, what training printed)."""
    folder = tmp_path_factory.mktemp("frozen")
    return folder, train(corpus, folder, "--freeze", "ffn")


@pytest.fixture
def copied(trained, tmp_path):
    """A --save-dir of its own to go on from there."""
    (tmp_path / "checkpoint_last.pt").write_bytes((trained[0] / "checkpoint_last.pt").read_bytes())
    return tmp_path


# ------------------------------------------------------------------ train, save, load
def test_the_log_and_the_checkpoint_say_what_is_frozen(trained):
    folder, printed = trained
    found, tensors = frozen_part(folder / "checkpoint_last.pt")
    assert found["freeze"] == "ffn" and len(found["names"]) == 16
    assert found["digest"] == digest(tensors) == logged_digest(printed)
    table = re.search(r"^--freeze ffn\n(( .*\n)+)", printed, re.M).group(1)
    assert re.search(r"^  ffn +3,232 +3,232 +0\.0$", table, re.M) and re.search(r"^  all .* 81\.1$", table, re.M)
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "num. trained: 13,888" in printed


def test_only_what_is_trained_has_optimizer_state(trained):
    state = torch.load(trained[0] / "checkpoint_last.pt", weights_only=True)
    moments = [s["exp_avg"].numel() for s in state["last_optimizer_state"]["state"].values()]
    assert sum(moments) == 13_888


def test_resume_keeps_the_frozen_tensors(trained, copied, corpus):
    before, tensors = frozen_part(trained[0] / "checkpoint_last.pt")
    printed = train(corpus, copied, "--freeze", "ffn", updates=4)
    after, same = frozen_part(copied / "checkpoint_last.pt")
    assert f"verified 16 frozen tensors, SHA-256 {before['digest']}" in printed and "num_updates 4" in printed
    assert before == after and logged_digest(printed) == before["digest"]
    assert_same(tensors, same)
    trained_before, trained_after = weights(trained[0] / "checkpoint_last.pt"), weights(copied / "checkpoint_last.pt")
    moved = [n for n in trained_before if n not in (*tensors, record.KEY)]
    assert moved and not any(torch.equal(trained_before[n], trained_after[n]) for n in moved if n.endswith("weight"))


CHANGED = {
    "other_group": ["--freeze", "attention"],
    "as_many_others": ["--freeze", r"re:(en|de)coder.*layers\.\d\.self_attn\.\w+_proj\..*"],  # 16, too
    "more": ["--freeze", "ffn,layer_norm"],
    "nothing": [],
}


@pytest.mark.parametrize("case", CHANGED)
def test_resume_with_another_set_is_refused(case, copied, corpus):
    before = (copied / "checkpoint_last.pt").read_bytes()
    line = fails(corpus, copied, *CHANGED[case], updates=4)
    assert line.startswith(f"--freeze {CHANGED[case][1]}: " if CHANGED[case] else "no --freeze: ")
    for part in ("checkpoint_last.pt was trained with --freeze ffn", "--reset-optimizer", "--finetune-from-model"):
        assert part in line
    assert [p.name for p in copied.glob("*.pt")] == ["checkpoint_last.pt"]
    assert (copied / "checkpoint_last.pt").read_bytes() == before


def test_resume_of_an_unfrozen_training_is_refused(corpus, tmp_path):
    train(corpus, tmp_path, updates=1)
    line = fails(corpus, tmp_path, "--freeze", "ffn")
    assert line.startswith("--freeze ffn: ") and "was trained with no --freeze" in line


def test_the_same_set_in_other_words_resumes(copied, corpus):
    assert "num_updates 3" in train(corpus, copied, "--freeze", "encoder.ffn decoder.ffn", updates=3)


@pytest.mark.parametrize("words", [["--freeze", "attention"], []])
def test_reset_optimizer_goes_on_with_another_set(words, copied, corpus):
    printed = train(corpus, copied, *words, "--reset-optimizer", updates=2)
    assert "verified 16 frozen tensors" in printed
    state = weights(copied / "checkpoint_last.pt")
    if words:
        assert record.decode(state[record.KEY])["freeze"] == "attention"
    else:
        assert record.KEY not in state


@pytest.mark.parametrize("first", [[], ["--freeze", "ffn"]])
def test_pretrained_parts_are_frozen(first, corpus, tmp_path):
    """--finetune-from-model: they are frozen as the pretrained model has them."""
    train(corpus, tmp_path / "first", *first, updates=3)
    start = weights(tmp_path / "first" / "checkpoint_last.pt")
    train(corpus, tmp_path / "second", "--freeze", "encoder,embeddings", "--finetune-from-model",
          tmp_path / "first" / "checkpoint_last.pt")  # fmt: skip
    _, tensors = frozen_part(tmp_path / "second" / "checkpoint_last.pt")
    assert "encoder.embed_tokens.weight" in tensors and "encoder.layers.1.fc1.weight" in tensors
    assert_same(tensors, {name: start[name] for name in tensors})


def test_generate_verifies(trained, corpus):
    printed = call_command("generate", *generate_args(corpus, trained[0] / "checkpoint_last.pt"))
    assert "verified 16 frozen tensors" in printed and len(hypotheses(printed)) == 13
    assert "trainable %" not in printed  # the table belongs to trainings


def test_a_full_checkpoint_without_a_record_loads(trained, corpus, tmp_path):
    state = torch.load(trained[0] / "checkpoint_last.pt", weights_only=True)
    del state["model"][record.KEY]
    state["model"] = dict(state["model"])  # without the digests of tensors, too
    torch.save(state, tmp_path / "old.pt")
    printed = call_command("generate", *generate_args(corpus, tmp_path / "old.pt"))
    assert "frozen parameters are not verified" in printed and len(hypotheses(printed)) == 13


# ------------------------------------------------------------------ what goes wrong
def nudge(checkpoint, name, out):
    """The file with one element of a tensor moved to the next number."""
    state = torch.load(checkpoint, weights_only=True)
    value = state["model"][name].view(-1)
    value[0] = torch.nextafter(value[0], value[0] + 1)
    return save_changed(state, out)


def save_changed(state, out):
    """A new dict has no digests: only the record can tell."""
    torch.save({**state, "model": dict(state["model"])}, out)
    return out


def test_one_moved_bit_is_refused(trained, corpus, tmp_path):
    path = nudge(trained[0] / "checkpoint_last.pt", "decoder.layers.1.fc2.weight", tmp_path / "moved.pt")
    with pytest.raises(Exception) as error:  # noqa: PT011
        call_command("generate", *generate_args(corpus, path))
    assert "frozen tensors (ffn) are not those that were saved" in explain(error.value)


def test_a_trained_tensor_may_differ(trained, corpus, tmp_path):
    path = nudge(trained[0] / "checkpoint_last.pt", "encoder.embed_tokens.weight", tmp_path / "fine.pt")
    assert "verified 16" in call_command("generate", *generate_args(corpus, path))


def test_a_damaged_record_is_refused(trained, corpus, tmp_path):
    state = torch.load(trained[0] / "checkpoint_last.pt", weights_only=True)
    state["model"][record.KEY][5] += 1
    save_changed(state, tmp_path / "damaged.pt")
    with pytest.raises(Exception) as error:  # noqa: PT011
        call_command("generate", *generate_args(corpus, tmp_path / "damaged.pt"))
    assert "record of frozen parameters" in explain(error.value)


@pytest.mark.parametrize("extra", [[], ["--disable-validation"]])
def test_what_moves_during_training_is_noticed_before_anything_is_written(extra, corpus, tmp_path, monkeypatch):
    """As if something other than the optimizer wrote weights."""
    from fairseq.trainer import Trainer

    stock = Trainer.train_step

    def step(self, *args, **kwargs):
        out = stock(self, *args, **kwargs)
        self.get_model().decoder.layers[0].fc1.weight.data[0, 0] += 1e-3
        return out

    monkeypatch.setattr(Trainer, "train_step", step)
    line = fails(corpus, tmp_path, "--freeze", "ffn", *extra)
    assert "decoder.layers.0.fc1.weight moved during training (1 of 16 frozen tensors" in line
    assert not list(tmp_path.glob("*.pt"))


def test_refused_options_are_one_line_and_write_nothing(corpus, tmp_path):
    done = run_command("train", *train_args(corpus, tmp_path / "c", *SHORT, "--freeze", "atention"), check=False)
    assert done.returncode != 0 and not list((tmp_path / "c").glob("*.pt"))
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fairseq_synth: error: --freeze atention: 'atention' matches no parameter")
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------ with other options
OPTIONS = {
    "update_freq": ["--update-freq", "2"],
    "clip_norm": ["--clip-norm", "0.1"],
    "bf16": ["--bf16"],
    "memory_efficient_bf16": ["--memory-efficient-bf16"],
    "memory_efficient_fp16": ["--memory-efficient-fp16"],
    "fp16_master_copies": ["--fp16", "--fp16-no-flatten-grads"],
    "adagrad": ["--optimizer", "adagrad"],
    "adafactor": ["--optimizer", "adafactor", "--lr", "0.01"],
    "checkpoint_activations": ["--checkpoint-activations"],
    "layerdrop": ["--encoder-layerdrop", "0.5", "--decoder-layerdrop", "0.5"],
    "frozen_dropout": ["--frozen-dropout", "remove", "--activation-dropout", "0.2"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_with(name, corpus, tmp_path):
    """Train and resume; the frozen tensors are those of the first save, and of the digest."""
    if "fp16" in name and not half_layer_norm():
        pytest.skip("this torch has no float16 layer norm on a CPU")
    options = OPTIONS[name]
    if name.startswith("ada"):
        options = [*options, "--weight-decay", "0.05"]
    first = train(corpus, tmp_path, "--freeze", "ffn,embeddings", *options)
    before, tensors = frozen_part(tmp_path / "checkpoint_last.pt")
    train(corpus, tmp_path, "--freeze", "ffn,embeddings", *options, updates=4)
    after, same = frozen_part(tmp_path / "checkpoint_last.pt")
    assert before == after and before["digest"] == digest(tensors) == logged_digest(first)
    assert_same(tensors, same)


@pytest.mark.parametrize("extra", [[], ["--ema-fp32"], ["--memory-efficient-bf16", "--ema-fp32"]])
def test_the_moving_average_keeps_what_is_frozen(extra, corpus, tmp_path):
    """d x + (1 - d) x is not x: without care 20 steps change tens of per cent of the values."""
    options = ["--freeze", "ffn,embeddings", "--store-ema", "--ema-decay", "0.9", *extra]
    for updates in (10, 20):
        train(corpus, tmp_path, *options, updates=updates)
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    found, tensors = frozen_part(tmp_path / "checkpoint_last.pt")
    average = state["extra_state"]["ema"]
    assert_same(tensors, {name: average[name] for name in tensors})
    assert record.decode(average[record.KEY]) == found
    assert not torch.equal(average["encoder.layers.0.self_attn.v_proj.weight"],
                           state["model"]["encoder.layers.0.self_attn.v_proj.weight"])  # fmt: skip
    assert torch.equal(average["decoder.output_projection.weight"], average["encoder.embed_tokens.weight"])
    if "--ema-fp32" in extra:
        copies = state["extra_state"]["ema_fp32_params"]
        assert record.KEY not in copies
        assert_same({n: t.float() for n, t in tensors.items()}, {n: copies[n] for n in tensors})


def test_two_workers(corpus, tmp_path):
    """Torchrun on CPUs, both ways to exchange gradients; frozen parameters have none to exchange."""
    records = []
    for updates, backend in ((2, "legacy_ddp"), (3, "pytorch_ddp")):
        extra = ("--freeze", "ffn,embeddings", "--ddp-backend", backend)
        arguments = train_args(corpus, tmp_path, *SHORT, *extra, updates=updates)
        printed = succeed("train", *[a for a in arguments if a not in ("--user-dir", USER_DIR)], launcher=torchrun())
        records.append(frozen_part(tmp_path / "checkpoint_last.pt")[0])
        assert records[-1]["digest"] in printed
    assert records[0] == records[1] and "verified 17 frozen tensors" in printed


# ------------------------------------------------------------------ averaging, comparing
@pytest.fixture(scope="module")
def three(corpus, tmp_path_factory):
    """Checkpoints after each of three updates."""
    folder = tmp_path_factory.mktemp("three")
    train(corpus, folder, "--freeze", "ffn,embeddings", "--save-interval-updates", "1", updates=3)
    return [folder / f"checkpoint_1_{n}.pt" for n in (1, 2, 3)]


def average(inputs, output):
    return synth_command(["average", "--inputs", *map(str, inputs), "--output", str(output)])


def test_averages_keep_what_is_frozen(three, corpus, tmp_path, capsys):
    assert average(three, tmp_path / "average.pt") == 0
    found, tensors = frozen_part(tmp_path / "average.pt")
    assert_same(tensors, frozen_part(three[0])[1])
    assert "verified 17" in call_command("generate", *generate_args(corpus, tmp_path / "average.pt"))
    assert synth_command(["diff-frozen", str(three[0]), str(tmp_path / "average.pt")]) == 0
    moving = "encoder.layers.0.self_attn.v_proj.weight"
    assert not torch.equal(weights(tmp_path / "average.pt")[moving], weights(three[2])[moving])


def test_fairseqs_own_way_to_average_keeps_the_record(three):
    """scripts/average_checkpoints.py: add up, divide; integers with //."""
    records = [weights(path)[record.KEY] for path in three]
    total = records[0].clone()
    for other in records[1:]:
        total += other
    total //= len(records)
    assert record.decode(total) == frozen_part(three[0])[0]


def test_average_of_other_frozen_parts_is_refused(three, trained, corpus, tmp_path, capsys):
    assert average([three[0], trained[0] / "checkpoint_last.pt"], tmp_path / "a.pt") == 2
    assert "has frozen other parameters than" in capsys.readouterr().err
    train(corpus, tmp_path / "other", "--freeze", "ffn,embeddings", "--seed", "2", updates=1)
    assert average([three[0], tmp_path / "other" / "checkpoint_last.pt"], tmp_path / "a.pt") == 2
    assert "has frozen other values of the same parameters" in capsys.readouterr().err
    assert not (tmp_path / "a.pt").exists()


def test_diff_frozen(three, tmp_path, capsys):
    assert synth_command(["diff-frozen", str(three[0]), str(three[2])]) == 0
    found, tensors = frozen_part(three[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:17] == [f"equal    {name}" for name in found["names"]]
    assert lines[17] == "--freeze ffn,embeddings" and lines[-1] == "0 of 17 frozen tensors differ"
    assert lines[18:20] == [f"{digest(tensors)}  {path}" for path in (three[0], three[2])]
    moved = nudge(three[2], "decoder.layers.0.fc2.bias", tmp_path / "moved.pt")
    assert synth_command(["diff-frozen", str(three[0]), str(moved)]) == 1
    printed = capsys.readouterr().out
    assert "MOVED    decoder.layers.0.fc2.bias" in printed and printed.count("equal    ") == 16
    assert printed.endswith("1 of 17 frozen tensors differ\n")


def test_diff_frozen_of_other_models(three, corpus, tmp_path, capsys):
    sizes = [word.replace("24", "32") for word in TINY]
    options = ["--freeze", "embeddings", *sizes]
    train(corpus, tmp_path / "wide", *options, updates=1)
    wide = tmp_path / "wide" / "checkpoint_last.pt"
    assert synth_command(["diff-frozen", str(three[0]), str(wide)]) == 1
    assert "float32[24, 16] is float32[32, 16]: encoder.layers.0.fc1.weight" in capsys.readouterr().out
    train(corpus, tmp_path / "free", updates=1)
    free = tmp_path / "free" / "checkpoint_last.pt"
    assert synth_command(["diff-frozen", str(free), str(three[0])]) == 2
    assert "was not trained with --freeze" in capsys.readouterr().err
    assert synth_command(["diff-frozen", str(tmp_path / "none.pt"), str(three[0])]) == 2
    assert "none.pt: no such checkpoint" in capsys.readouterr().err
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert synth_command(["diff-frozen", str(three[0]), str(tmp_path / "text.pt")]) == 2
    assert "text.pt: cannot be read" in capsys.readouterr().err


# ------------------------------------------------------------------ language models
@pytest.mark.parametrize("name, freeze", zip(LANGUAGE_MODELS, ["embeddings", "attention", "ffn"]))
def test_language_models(name, freeze, text, tmp_path):
    arguments = [text, "--user-dir", USER_DIR, *LANGUAGE_MODELS[name], "--optimizer", "adam", "--lr", "0.01",
                 "--tokens-per-sample", "16", "--cpu", "--num-workers", "0", "--save-dir", tmp_path,
                 "--no-progress-bar", "--no-epoch-checkpoints", "--freeze", freeze]  # fmt: skip
    printed = call_command("train", *arguments, "--max-update", "2")
    before, tensors = frozen_part(tmp_path / "checkpoint_last.pt")
    assert before["digest"] == logged_digest(printed)
    call_command("train", *arguments, "--max-update", "4")
    after, same = frozen_part(tmp_path / "checkpoint_last.pt")
    assert before == after
    assert_same(tensors, same)
    printed = call_command("eval_lm", text, "--user-dir", USER_DIR, "--path", tmp_path / "checkpoint_last.pt",
                           "--task", LANGUAGE_MODELS[name][1], "--tokens-per-sample", "16", "--batch-size", "2",
                           "--cpu", "--num-workers", "0")  # fmt: skip
    assert f"verified {len(tensors)} frozen tensors" in printed and "Perplexity" in printed
    with pytest.raises(Exception) as error:  # noqa: PT011
        call_command("train", *arguments[:-1], "layer_norm", "--max-update", "6")
    assert "--freeze layer_norm: " in explain(error.value)
