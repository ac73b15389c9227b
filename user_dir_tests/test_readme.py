"""What the README says is run: its commands, its scorer, the formulas of its table of variants."""

import re
import shlex

import pytest
from builders import build
from conftest import REPOSITORY, TINY, USER_DIR, call_command, train_args, write_corpus

from fairseq_synth.cli import main as synth_command
from fairseq_synth.models.config import SynthTransformerFlatConfig, own_options
from fairseq_synth.models.transformer import PRESETS
from fairseq_synth.models.transformer_lm import PRESETS as LM_PRESETS
from fairseq_synth.modules.scorers import SCORERS

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    shlex.split(block.replace("\\\n", " ")) for block in re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)
]
SCORER = re.search(r"^```python\n(.*?)^```", README, re.M | re.S).group(1)


PLAIN = ("--user-dir", "fairseq_synth", "--arch")
IWSLT = (*PLAIN, "synth_transformer_iwslt_de_en")


def command(*start):
    (found,) = [c for c in COMMANDS if c[: len(start)] == list(start)]
    return found


def test_the_two_commands_exist():
    for start in (("bash", "examples/quickstart.sh"), ("bash", "user_dir_tests/run.sh")):
        assert (REPOSITORY / command(*start)[1]).is_file()
    assert "user_dir_tests/run.sh" in (REPOSITORY / ".ci" / "run").read_text()


def test_links_lead_somewhere():
    defined = re.findall(r"^\[(.+?)\]: http", README, re.M)
    text = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    used = set(re.findall(r"\[([^\[\]]+)\](?![(:])", re.sub(r"\[\d\](?=\[)|`[^`\n]*`", "", text)))
    assert used and set(defined) == used
    headings = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", README, re.M)}
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (REPOSITORY / target).exists(), target


def test_train_and_generate_as_written(corpus, tmp_path):
    places = {"data-bin": corpus, "fairseq_synth": USER_DIR, "checkpoints": tmp_path,
              "checkpoints/checkpoint_best.pt": tmp_path / "checkpoint_best.pt"}  # fmt: skip
    small = [*TINY, "--max-update", "1", "--cpu", "--no-progress-bar"]
    train = [places.get(word, word) for word in command("fairseq-train", "data-bin")[1:]]
    call_command("train", *train, *small)
    generate = [places.get(word, word) for word in command("fairseq-generate", "data-bin")[1:]]
    assert "Translated 13 sentences" in call_command("generate", *generate, "--cpu", "--max-len-b", "5")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Binarised monolingual text."""
    root = write_corpus(tmp_path_factory.mktemp("text"), {"train": 60, "valid": 10, "test": 10})
    prefixes = [a for s in ("train", "valid", "test") for a in (f"--{s}pref", root / f"{s}.src")]
    call_command("preprocess", "--only-source", *prefixes, "--destdir", root / "bin")
    return root / "bin"


def test_language_model_as_written(text, tmp_path):
    places = {"data-bin/text": text, "fairseq_synth": USER_DIR, "checkpoints/lm": tmp_path,
              "checkpoints/lm/checkpoint_best.pt": tmp_path / "checkpoint_last.pt"}  # fmt: skip
    train = command("fairseq-train", "data-bin/text", "--user-dir", "fairseq_synth", "--task", "language_modeling")[1:]
    small = ["--decoder-layers", "1", "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "16", "--max-update",
             "1", "--cpu", "--num-workers", "0"]  # fmt: skip
    call_command("train", *[places.get(word, word) for word in train], *small)
    evaluate = [
        places.get(word, word)
        for word in command("fairseq-eval-lm", "data-bin/text", "--user-dir", "fairseq_synth", "--path")[1:]
    ]
    assert "Perplexity" in call_command("eval_lm", *evaluate, "--cpu", "--num-workers", "0")


def test_streams_as_written(text, tmp_path):
    best = "checkpoints/span/checkpoint_best.pt"
    places = {"data-bin/text": text, "fairseq_synth": USER_DIR, "checkpoints/span": tmp_path, "600000": "1",
              "64": "2", "512": "16", best: tmp_path / "checkpoint_last.pt"}  # fmt: skip
    train = command("fairseq-train", "data-bin/text", "--user-dir", "fairseq_synth", "--task", "streaming_lm")[1:]
    small = ["--layers", "1", "--embed-dim", "16", "--ffn-embed-dim", "16", "--attention-span", "32", "--cpu"]
    call_command("train", *[places.get(word, word) for word in train], *small)
    evaluate = command("fairseq-eval-lm", "data-bin/text", "--user-dir", "fairseq_synth", "--task")[1:]
    assert "Perplexity" in call_command("eval_lm", *[places.get(word, word) for word in evaluate], "--cpu")


def test_check_as_written(capsys):
    assert synth_command(command("fairseq-synth", "check", "random+dot_product")[1:]) == 0
    expected = re.search(r"ends with `(.*?)`", README, re.S).group(1).replace("\n", " ")
    assert capsys.readouterr().out.strip().endswith(expected)


def test_the_scorer_of_the_readme_keeps_every_invariant(tmp_path, capsys):
    path = tmp_path / "relative.py"
    path.write_text(SCORER)
    words = [str(path) if word == "relative.py" else word for word in command("fairseq-synth", "check", "relative")[1:]]
    try:
        assert synth_command(words) == 0, capsys.readouterr().out
    finally:
        SCORERS.pop("relative", None)


def test_average_as_written_parses(capsys):
    assert synth_command(command("fairseq-synth", "average")[1:]) == 2
    assert "no such checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        *SCORERS,
        *PRESETS,
        *LM_PRESETS,
        *("--" + f.name.replace("_", "-") for f in own_options(SynthTransformerFlatConfig)),
    ],
)
def test_the_readme_names_everything(name):
    if name.endswith("layers-to-keep"):
        pytest.skip("fairseq's own option, of another type here")
    assert f"`{name}" in README


# ------------------------------------------------------------------ the table of variants
LETTERS = {"d": 12, "h": 3, "f": 10, "N": 6, "a": 2, "b": 3, "r": 5, "M": 7, "A": 6, "E": 8}
WIDTHS = {"embed_dim": LETTERS["d"], "attention_heads": LETTERS["h"]}
DOT = {"encoder_self_attention": "dot_product"}


def variants():
    """name -> cells of its row: name, what it computes, parameters, longest input, speed, paper."""
    section = re.search(r"^## Variants\n(.*?)^## ", README, re.M | re.S).group(1)
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("| `")]
    return {re.match(r"`([\w+-]+)", cells[0]).group(1): cells for cells in rows}


def written(name, index=0):
    """The value of a formula in the row's cell of parameters, which says `2 d²` for 2 * d**2."""
    formula = re.findall(r"`(.*?)`", variants()[name][2])[index].replace("²", "**2")
    return eval(re.sub(r"(?<=[\w)])\s+(?=[\w(])", "*", formula), {}, LETTERS)


def size(module, without=()):
    return sum(p.numel() for name, p in module.named_parameters() if not name.startswith(without))


def layer(**options):
    """The encoder layer of a small model. The decoder has the maps, so that their length is never without effect."""
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in WIDTHS.items()}
    model = build(**sizes, encoder_layers=1, decoder_layers=1, encoder_ffn_embed_dim=LETTERS["f"],
                  synthesizer_max_length=LETTERS["N"], **options)  # fmt: skip
    return model.encoder.layers[0]


def logits(spec):
    rank = {"synthesizer_rank": LETTERS["r"]} if "factorized_random" in spec else {}
    return size(layer(encoder_self_attention=spec, **rank).self_attn, without=("v_proj.", "out_proj."))


def stream_attention(**options):
    return size(build("adaptive_span_lm", **WIDTHS, layers=1, attention_span=9, **options).decoder.layers[0].self_attn)


def small_embedding():
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in WIDTHS.items()}
    return size(build(**sizes, embedding_dim=LETTERS["E"]).encoder.embed_tokens, without=("embedding.",))


MEASURED = {
    **{name: lambda name=name: logits(name) for name in [*SCORERS, "random+dot_product"]},
    "--encoder-adaptive-span": lambda: size(layer(encoder_adaptive_span=9, **DOT)) - size(layer(**DOT)),
    "--persistent-memory": lambda: (
        size(layer(persistent_memory=LETTERS["M"], keep_feed_forward=True, **DOT)) - size(layer(**DOT))
    ),
    "adaptive_span_lm": stream_attention,
    "all_attention_lm_enwik8": lambda: stream_attention(persistent_memory=LETTERS["M"]),
    "--encoder-attention-dim": lambda: size(layer(encoder_attention_dim=LETTERS["A"], **DOT).self_attn),
    "--embedding-dim": small_embedding,
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_table_has_the_parameters_of(name):
    assert MEASURED[name]() == written(name)


def test_the_table_leaves_nothing_out():
    formulas = {name for name, cells in variants().items() if "`" in cells[2]}
    assert formulas == set(MEASURED)
    for name, scorer in SCORERS.items():
        assert (variants()[name][3] == "N") == ("max_length" in scorer.options)


def test_the_feed_forward_that_persistent_memory_replaces():
    memory = {"persistent_memory": LETTERS["M"], **DOT}
    gone = size(layer(keep_feed_forward=True, **memory)) - size(layer(**memory))
    assert gone == written("--persistent-memory", 1)


def test_freezing_as_written(corpus, tmp_path, capsys):
    places = {"data-bin/pairs": corpus, "fairseq_synth": USER_DIR, "checkpoints/frozen": tmp_path}
    train = [places.get(word, word) for word in command("fairseq-train", "data-bin/pairs", *IWSLT)[1:]]
    small = [*TINY, "--max-update", "1", "--cpu", "--no-progress-bar", "--num-workers", "0"]
    assert "frozen: " in call_command("train", *train, *small)
    diff = [word.replace("checkpoints/frozen", str(tmp_path)) for word in command("fairseq-synth", "diff-frozen")[1:]]
    assert synth_command(diff) == 0
    assert "0 of 26 frozen tensors differ" in capsys.readouterr().out


def test_inspect_and_plot_as_written(corpus, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    call_command("train", *train_args(corpus, tmp_path, "--encoder-self-attention", "random+dot_product"))
    (tmp_path / "sentences.txt").write_text("w1 w2 w3\n")
    places = {"checkpoints/checkpoint_best.pt": str(tmp_path / "checkpoint_best.pt"),
              "pictures": str(tmp_path / "pictures"), "sentences.txt": str(tmp_path / "sentences.txt")}  # fmt: skip
    for name in ("inspect", "plot"):
        assert synth_command([places.get(word, word) for word in command("fairseq-synth", name)[1:]]) == 0
    made = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert made >= {"mixture.png", "map-encoder-self-random.png", "attention-1-cross.png", "attention-1.npz"}


def test_results_as_written(corpus, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for seed, name in (("1", "random-seed1"), ("2", "random-seed2"), ("3", "transformer")):
        arch = "transformer" if name == "transformer" else "synth_transformer"
        options = train_args(corpus, tmp_path / name, "--seed", seed, "--log-format", "json", arch=arch)
        log = call_command("train", *options)
        (tmp_path / name / "train.log").write_text(log)
    words = command("fairseq-synth", "results")[1:]
    words = [w.replace("runs/", f"{tmp_path}/").replace("results.html", f"{tmp_path}/results.html") for w in words]
    assert synth_command(words) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| random +\|.* 1, 2 \|.*±", printed, re.M) and re.search(r"^\| transformer +\|", printed, re.M)
    assert "data:image/png;base64," in (tmp_path / "results.html").read_text()


def test_doctor_as_written(capsys):
    synth_command(command("fairseq-synth", "doctor")[1:])  # the status is that of the machine
    assert "Patched in fairseq" in capsys.readouterr().out


def test_seeds_as_written(corpus, tmp_path, capsys):
    def here(words):
        known = {"data-bin/pairs": str(corpus), "fairseq_synth": str(USER_DIR)}
        return [known.get(word, word.replace("checkpoints/seeded", str(tmp_path))) for word in words[1:]]

    small = [*TINY, "--max-update", "1", "--cpu", "--no-progress-bar", "--num-workers", "0"]
    call_command("train", *here(command("fairseq-train", "data-bin/pairs", *PLAIN, "synth_transformer_tiny")), *small)
    assert synth_command(here(command("fairseq-synth", "materialize"))) == 0
    seeded, full = (tmp_path / name for name in ("checkpoint_best.pt", "full.pt"))
    assert seeded.stat().st_size < full.stat().st_size
    for path in (seeded, full):
        generate = [
            str(path) if word == str(seeded) else word for word in here(command("fairseq-generate", "data-bin/pairs"))
        ]
        printed = call_command("generate", *generate, "--cpu", "--max-len-b", "5")
        assert "Translated 13 sentences" in printed
