"""--frozen-init and --store-frozen seed through the real commands: files, generation, averaging, resume, EMA."""

import re
import subprocess
import sys

import pytest
import torch
from builders import LANGUAGE_MODELS, half_layer_norm, hypotheses
from conftest import ENVIRONMENT, USER_DIR, call_command, generate_args, run_command, train_args

from fairseq_synth.cli import main as synth_command
from fairseq_synth.errors import explain
from fairseq_synth.freezing import record
from fairseq_synth.seeded import storage

SHORT = ["--synthesizer-max-length", "32"]
FROZEN = ["--freeze", "embeddings,ffn", "--frozen-init"]
SEED = [*FROZEN, "7", "--store-frozen", "seed"]


def train(data, folder, *extra, **options):
    return call_command("train", *train_args(data, folder, *SHORT, *extra, **options))


def saved(checkpoint):
    return torch.load(checkpoint, map_location="cpu", weights_only=True)


def weights(checkpoint):
    """Of any checkpoint, with every tensor in place."""
    return storage.materialized(saved(checkpoint)["model"])


def assert_same(one, other):
    assert one.keys() == other.keys()
    names = [name for name in one if not name.endswith("_float_tensor")]  # 0.12.2 never initialises it
    assert [name for name in names if not torch.equal(one[name], other[name])] == []


def generated(data, checkpoint, *extra):
    found = hypotheses(call_command("generate", *generate_args(data, checkpoint, *extra)))
    assert len(found) == 13
    return found


def fails(call, *args, **options):
    """The line that a user sees for a command that must fail."""
    with pytest.raises(Exception) as error:  # noqa: PT011  (fairseq wraps ours; explain() finds it)
        call(*args, **options)
    line = explain(error.value)
    assert line is not None and "\n" not in line, error.value
    return line


@pytest.fixture(scope="module")
def pair(corpus, tmp_path_factory):
    """The same training twice: (full checkpoint, checkpoint with a seed)."""
    found = []
    for kind in ("full", "seed"):
        folder = tmp_path_factory.mktemp(kind)
        train(corpus, folder, *FROZEN, "7", "--store-frozen", kind)
        found.append(folder / "checkpoint_last.pt")
    return found


@pytest.fixture
def copied(pair, tmp_path):
    """A --save-dir of its own to go on from the checkpoint with a seed."""
    (tmp_path / "checkpoint_last.pt").write_bytes(pair[1].read_bytes())
    return tmp_path


# ---------------------------------------------------------------------- the file
def test_the_file_lacks_what_the_seed_gives(pair):
    full, seed = (saved(path)["model"] for path in pair)
    names = record.decode(full[record.KEY])["names"]
    assert not set(names) & set(seed) and "decoder.embed_tokens.weight" not in seed  # nor a tied name
    assert "decoder.layers.0.self_attn.out_proj.weight" in seed
    entry = record.decode(seed[storage.KEY])
    assert entry["seed"] == 7 and sorted(entry["tensors"]) == sorted(names)
    assert record.decode(seed[record.KEY]) == record.decode(full[record.KEY])
    assert_same(storage.materialized(seed), full)


@pytest.mark.parametrize("freeze", ["ffn", "embeddings,attention"])
def test_the_size_is_that_of_what_trains(freeze, corpus, tmp_path):
    """Without optimizer state, at most 2 % above four bytes per trained parameter."""
    sizes = ["--encoder-embed-dim", "192", "--decoder-embed-dim", "192", "--encoder-ffn-embed-dim", "768",
             "--decoder-ffn-embed-dim", "768", "--no-save-optimizer-state"]  # fmt: skip
    seed = ["--freeze", freeze, "--frozen-init", "1", "--store-frozen"]
    printed = train(corpus, tmp_path / "seed", *sizes, *seed, "seed", updates=1)
    train(corpus, tmp_path / "full", *sizes, *seed, "full", updates=1)
    counts = re.search(r"num\. shared model params: ([\d,]+) \(num\. trained: ([\d,]+)\)", printed).groups()
    total, trained = (int(count.replace(",", "")) for count in counts)
    light, full = ((tmp_path / kind / "checkpoint_last.pt").stat().st_size for kind in ("seed", "full"))
    assert trained < 0.7 * total
    assert light <= 1.02 * 4 * trained and light <= 1.02 * full * trained / total


# ---------------------------------------------------------------------- reading it
def test_generate_interactive_and_validate(pair, corpus):
    expected = generated(corpus, pair[0])
    assert generated(corpus, pair[1]) == expected
    sources = call_command("generate", *generate_args(corpus, pair[1]))
    sentences = [line.split("\t")[1] for line in sorted(re.findall(r"^S-.*", sources, re.M),
                 key=lambda line: int(line[2:].split("\t")[0]))]  # fmt: skip
    command = [sys.executable, "-m", "fairseq_cli.interactive", *map(str, generate_args(corpus, pair[1]))]
    done = subprocess.run(command, input="\n".join(sentences), env=ENVIRONMENT, capture_output=True, text=True)
    assert [words for _, words in hypotheses(done.stdout).values()] == [expected[i][1] for i in range(13)], done.stderr
    losses = [
        re.findall(r" loss (?:=)?([\d.]+)", call_command("validate", corpus, "--user-dir", USER_DIR, "--path", path,
                   "--cpu", "--task", "translation", "--max-tokens", "200"))[-1]
        for path in pair
    ]  # fmt: skip
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name, freeze", [("blocks", "ffn"), ("streams", "embeddings"), ("all_attention", "ffn")])
def test_language_models(name, freeze, text, tmp_path):  # noqa: F811
    perplexities = []
    for kind in ("full", "seed"):
        call_command("train", text, "--user-dir", USER_DIR, *LANGUAGE_MODELS[name], "--optimizer", "adam", "--lr",
                     "0.01", "--tokens-per-sample", "16", "--cpu", "--num-workers", "0", "--no-progress-bar",
                     "--no-epoch-checkpoints", "--freeze", freeze, "--frozen-init", "3", "--store-frozen", kind,
                     "--max-update", "2", "--save-dir", tmp_path / kind)  # fmt: skip
        checkpoint = tmp_path / kind / "checkpoint_last.pt"
        printed = call_command("eval_lm", text, "--user-dir", USER_DIR, "--path", checkpoint, "--task",
                               LANGUAGE_MODELS[name][1], "--tokens-per-sample", "16", "--batch-size", "2",
                               "--cpu", "--num-workers", "0")  # fmt: skip
        perplexities.append(re.findall(r"Perplexity: ([\d.]+)", printed))
    assert perplexities[0] == perplexities[1] != []
    assert storage.KEY in saved(tmp_path / "seed" / "checkpoint_last.pt")["model"]


def test_an_ensemble_of_two_seeds(pair, corpus, tmp_path):
    train(corpus, tmp_path / "full", *FROZEN, "8", "--seed", "5")
    train(corpus, tmp_path / "seed", *FROZEN, "8", "--seed", "5", "--store-frozen", "seed")
    both = [f"{first}:{tmp_path / kind / 'checkpoint_last.pt'}" for first, kind in zip(pair, ("full", "seed"))]
    assert generated(corpus, both[0]) == generated(corpus, both[1]) != generated(corpus, pair[1])


def test_on_the_fly(pair, corpus):
    """Identical hypotheses and scores, from a model without the frozen matrices."""
    light = generated(corpus, pair[1], "--model-overrides", "{'frozen_on_the_fly': True}")
    assert light == generated(corpus, pair[1])
    assert generated(corpus, pair[0], "--model-overrides", "{'frozen_on_the_fly': True}") == light


def test_on_the_fly_is_not_for_training(corpus, tmp_path):
    line = fails(train, corpus, tmp_path, *SEED, "--frozen-on-the-fly")
    assert line == "--frozen-on-the-fly: is for generation and evaluation; drop it to train"
    assert not list(tmp_path.glob("*.pt"))


# ---------------------------------------------------------------------- going on from it
def test_resume(pair, copied, corpus):
    """Four updates with a stop in the middle are four updates; and of full checkpoints."""
    printed = train(corpus, copied, *SEED, updates=4)
    assert "verified 17 frozen tensors" in printed and "num_updates 4" in printed
    full = pair[0].parent.parent / "resumed"
    full.mkdir(exist_ok=True)
    (full / "checkpoint_last.pt").write_bytes(pair[0].read_bytes())
    train(corpus, full, *FROZEN, "7", updates=4)
    assert_same(weights(copied / "checkpoint_last.pt"), saved(full / "checkpoint_last.pt")["model"])


@pytest.mark.parametrize(
    "change, line",
    [
        (["--frozen-init", "8"], "--frozen-init 8: the checkpoint's frozen tensors are drawn from seed 7; give"),
        (["--freeze", "ffn"], "--freeze ffn: "),
    ],
)
def test_resume_with_another_seed_or_set_is_refused(change, line, copied, corpus):
    before = (copied / "checkpoint_last.pt").read_bytes()
    assert fails(train, corpus, copied, *SEED, *change, updates=4).startswith(line)
    assert (copied / "checkpoint_last.pt").read_bytes() == before and len(list(copied.glob("*.pt*"))) == 1


def test_fine_tuning(pair, corpus, tmp_path):
    """All parameters trained from a checkpoint with a seed; or some frozen again, without a seed of their own."""
    start = ["--finetune-from-model", pair[1]]
    train(corpus, tmp_path / "all", *start, "--lr", "0.0", updates=1)
    assert_same({n: t for n, t in weights(pair[1]).items() if n != record.KEY},
                saved(tmp_path / "all" / "checkpoint_last.pt")["model"])  # fmt: skip
    train(corpus, tmp_path / "some", *start, "--freeze", "encoder.ffn", updates=1)
    found = saved(tmp_path / "some" / "checkpoint_last.pt")["model"]
    assert torch.equal(found["encoder.layers.0.fc1.weight"], weights(pair[1])["encoder.layers.0.fc1.weight"])
    line = fails(train, corpus, tmp_path / "other", *start, "--freeze", "attention", "--frozen-init", "7")
    assert "in the checkpoint is not what this seed draws" in line
    assert not list((tmp_path / "other").glob("*.pt"))


@pytest.mark.parametrize("option", ["--memory-efficient-bf16", "--fp16"])
def test_half_precision(option, corpus, tmp_path):
    if "fp16" in option and not half_layer_norm():
        pytest.skip("this torch has no float16 layer norm on a CPU")
    options = [option, "--fp16-no-flatten-grads"] if option == "--fp16" else [option]
    for kind in ("full", "seed"):
        train(corpus, tmp_path / kind, *FROZEN, "7", "--store-frozen", kind, *options)
        train(corpus, tmp_path / kind, *FROZEN, "7", "--store-frozen", kind, *options, updates=4)
    full, seed = (tmp_path / kind / "checkpoint_last.pt" for kind in ("full", "seed"))
    assert_same(weights(seed), saved(full)["model"])
    assert "encoder.layers.0.fc1.weight" not in saved(seed)["model"]
    assert generated(corpus, full) == generated(corpus, seed)


@pytest.mark.parametrize("extra", [[], ["--ema-fp32"]])
def test_moving_averages_hold_no_frozen_tensors_either(extra, corpus, tmp_path):
    options = ["--store-ema", "--ema-decay", "0.5", *extra]
    for kind in ("full", "seed"):
        for updates in (3, 6):
            train(corpus, tmp_path / kind, *FROZEN, "7", "--store-frozen", kind, *options, updates=updates)
    full, seed = (saved(tmp_path / kind / "checkpoint_last.pt") for kind in ("full", "seed"))
    assert_same(storage.materialized(seed["extra_state"]["ema"]), full["extra_state"]["ema"])
    assert set(seed["extra_state"]["ema"]) == set(seed["model"])
    if extra:
        assert set(seed["extra_state"]["ema_fp32_params"]) == set(seed["model"]) - {storage.KEY, record.KEY}
    assert materialize(tmp_path / "seed" / "checkpoint_last.pt", tmp_path / "full.pt") == 0
    assert_same(saved(tmp_path / "full.pt")["extra_state"]["ema"], full["extra_state"]["ema"])


# ---------------------------------------------------------------------- averaging and materializing
def average(inputs, output):
    return synth_command(["average", "--inputs", *map(str, inputs), "--output", str(output)])


def materialize(checkpoint, output):
    return synth_command(["materialize", str(checkpoint), "--output", str(output)])


def test_averages(corpus, tmp_path, capsys):
    for kind in ("full", "seed"):
        train(corpus, tmp_path / kind, *FROZEN, "7", "--store-frozen", kind, "--save-interval-updates", "1", updates=3)
        assert average([tmp_path / kind / f"checkpoint_1_{n}.pt" for n in (1, 2, 3)], tmp_path / f"{kind}.pt") == 0
    assert_same(weights(tmp_path / "seed.pt"), saved(tmp_path / "full.pt")["model"])
    assert "encoder.layers.0.fc1.weight" not in saved(tmp_path / "seed.pt")["model"]
    assert generated(corpus, tmp_path / "seed.pt") == generated(corpus, tmp_path / "full.pt")
    train(corpus, tmp_path / "other", *FROZEN, "8", "--store-frozen", "seed", updates=1)
    inputs = [tmp_path / "seed" / "checkpoint_1_3.pt", tmp_path / "other" / "checkpoint_last.pt"]
    capsys.readouterr()
    assert average(inputs, tmp_path / "wrong.pt") == 2
    assert "has frozen other values of the same parameters" in capsys.readouterr().err
    inputs[1] = tmp_path / "full" / "checkpoint_1_3.pt"
    assert average(inputs, tmp_path / "wrong.pt") == 2
    assert f"{inputs[0]} stores a seed in place of what is frozen, {inputs[1]} does not" in capsys.readouterr().err
    assert average(inputs[::-1], tmp_path / "wrong.pt") == 2
    assert f"average what fairseq-synth materialize {inputs[0]} writes" in capsys.readouterr().err
    assert not (tmp_path / "wrong.pt").exists()


def test_materialize(pair, corpus, tmp_path, capsys):
    assert materialize(pair[1], tmp_path / "checkpoint_last.pt") == 0
    assert re.fullmatch(r"wrote \S+: 19 tensors drawn from their seed and verified\n", capsys.readouterr().out)
    assert_same(saved(tmp_path / "checkpoint_last.pt")["model"], saved(pair[0])["model"])
    assert generated(corpus, tmp_path / "checkpoint_last.pt") == generated(corpus, pair[0])
    train(corpus, tmp_path, *FROZEN, "7", updates=3)  # goes on as a training with full checkpoints
    assert storage.KEY not in saved(tmp_path / "checkpoint_last.pt")["model"]


def test_materialize_refuses(pair, tmp_path, capsys):
    def refused(checkpoint):
        assert materialize(checkpoint, tmp_path / "out.pt") == 2 and not (tmp_path / "out.pt").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "leaves no frozen tensors out; it is a full checkpoint already" in refused(pair[0])
    assert "no such checkpoint" in refused(tmp_path / "absent.pt")
    (tmp_path / "cut.pt").write_bytes(pair[1].read_bytes()[:3000])
    assert "cannot be read" in refused(tmp_path / "cut.pt")
    assert "frozen tensors (embeddings,ffn) are not those that were saved" in refused(other_seed(pair[1], tmp_path))


def other_seed(checkpoint, folder):
    """The file with another seed than the one it was written with."""
    state = saved(checkpoint)
    state["model"][storage.KEY] = record.encode({**record.decode(state["model"][storage.KEY]), "seed": 9})
    state["cfg"]["model"]["frozen_init"] = 9
    torch.save({**state, "model": dict(state["model"])}, folder / "other_seed.pt")  # without digests
    return folder / "other_seed.pt"


def test_another_digest_is_one_line(pair, corpus, tmp_path):
    done = run_command("generate", *generate_args(corpus, other_seed(pair[1], tmp_path)), check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert last.startswith("fairseq_synth: error: the checkpoint's frozen tensors (embeddings,ffn) are not those that")


def test_an_override_without_effect_is_refused(pair, corpus):
    arguments = generate_args(corpus, pair[1], "--model-overrides", "{'frozen_init': 8}")
    assert fails(call_command, "generate", *arguments).startswith("--frozen-init 8: the checkpoint's frozen tensors")
