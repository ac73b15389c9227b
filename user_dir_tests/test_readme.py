"""What the texts say is run: their commands, in their order; links, tables and names are compared with the code."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, REPOSITORY, TINY, USER_DIR, call_command
from fairseq.models import ARCH_MODEL_REGISTRY

from fairseq_synth.checks.case import dictionary
from fairseq_synth.cli import main as synth_command
from fairseq_synth.modules.scorers import SCORERS

README = (REPOSITORY / "README.md").read_text()
TEXTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("fairseq_synth/*.md"), *REPOSITORY.glob("examples/*/*.md")])
TEXTS = [path.relative_to(REPOSITORY).as_posix() for path in TEXTS]


def prose(text):
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


# ------------------------------------------------------------------ length, links
def test_the_readme_is_short():
    assert README.count("\n") < 300


def headings(text):
    """The anchors that GitHub makes."""
    found = re.findall(r"^#+ (.*)$", prose(text), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    path = REPOSITORY / name
    text = prose(path.read_text())
    defined = re.findall(r"^\[(.+?)\]: http", text, re.M)
    used = set(re.findall(r"\[([^\[\]]+)\](?![(:])", re.sub(r"\[[^\[\]]+\](?=\[)|`[^`\n]*`", "", text)))
    assert set(defined) == used
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            place = (path.parent / file) if file else path
            assert place.exists(), target
            assert not anchor or anchor in headings(place.read_text()), target


def test_the_contents_name_every_section():
    sections = re.findall(r"^## (.*)$", prose(README), re.M)
    listed = re.search(r"^## Contents\n(.*?)^## ", README, re.M | re.S).group(1)
    assert ["Contents", *re.findall(r"\[([^\]]+)\]\(#", listed)] == sections


def test_the_first_screen():
    first = README[: README.index("## Contents")]
    assert "](fairseq_synth/EXTENDING.md)" in first and "](CITATION.cff)" in first
    (picture,) = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert picture in first and (REPOSITORY / picture).stat().st_size < 100_000
    for script in ("examples/quickstart.sh", "user_dir_tests/run.sh"):
        assert f"```bash\nbash {script}\n```" in first and (REPOSITORY / script).is_file()
    assert "user_dir_tests/run.sh" in (REPOSITORY / ".ci" / "run").read_text()


def test_the_texts_name_everything():
    """Every architecture, scorer and option of ours; options of sequential models are fairseq's or explained there."""
    printed = output(["fairseq-synth", "options"]).partition("Their options:")[0]
    words = [line.strip().partition("  (")[0] for line in printed.splitlines() if re.match(r"  \S", line)]
    names = [name for word in words for name in re.split(r",\s*", word) if name and not name.endswith("layers-to-keep")]
    assert {"random", "--freeze", "synth_transformer_lm", "adaptive_span_lm"} <= set(names)
    everything = "".join((REPOSITORY / name).read_text() for name in TEXTS)
    assert not [name for name in names if f"`{name}" not in everything]


# ------------------------------------------------------------------ commands
def shell(text):
    """The commands of a block, a loop unrolled: words, and the file that tee writes (or None)."""
    text = re.sub(
        r"^for (\w+) in (.*?); do\n(.*?)^done$",
        lambda loop: "\n".join(loop[3].replace(f"${loop[1]}", value) for value in loop[2].split()),
        text.replace("\\\n", " "),
        flags=re.M | re.S,
    )
    for line in filter(None, text.splitlines()):
        command, _, tee = line.partition(" 2>&1 | tee ")
        yield shlex.split(command), shlex.split(tee)[-1] if tee else None


# one user's day: the other texts go on where the README ends
DAY = ["README.md", "fairseq_synth/INSPECTION.md", "fairseq_synth/FREEZING.md"]
BLOCKS = [b for name in DAY for b in re.findall(r"^```bash\n(.*?)^```", (REPOSITORY / name).read_text(), re.M | re.S)]
ELSEWHERE = ("bash", "pip")  # tested by test_quickstart.py, test_packaging.py and this run
COMMANDS = [(words, log) for block in BLOCKS for words, log in shell(block) if words[0] not in ELSEWHERE]
SMALL = {
    None: [*TINY, "--log-format", "json", "--max-update", "2"],
    "language_modeling": ["--decoder-layers", "1", "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "16",
                          "--max-update", "2"],
    "streaming_lm": ["--layers", "1", "--embed-dim", "16", "--ffn-embed-dim", "16", "--attention-span", "32",
                     "--max-update", "2", "--tokens-per-sample", "16", "--batch-size", "2"],
}  # fmt: skip
CPU = ["--cpu", "--num-workers", "0"]
# what is printed by the command that has these words; every command is one of these
SAYS = {
    ("python", "examples/quickstart/corpus.py"): "test",
    ("mkdir",): "",
    ("fairseq-preprocess",): "Wrote preprocessed data to data-bin/",
    ("fairseq-train",): "done training",
    ("fairseq-train", "--freeze"): r"frozen: ",
    ("fairseq-generate",): "Translated 13 sentences",
    ("fairseq-eval-lm",): "Perplexity: [1-9]",
    ("fairseq-synth", "diff-frozen"): "^0 of [1-9][0-9]* frozen tensors differ",
    ("fairseq-synth", "doctor"): "Patched in fairseq",
    ("fairseq-synth", "inspect"): r"synth_transformer_tiny",
    ("fairseq-synth", "plot"): r"wrote runs/\S+\.png",
    ("fairseq-synth", "results"): r"^\| random +\|.* 2 \|[^$]*^\| dot_product +\|",
    ("fairseq-synth", "check"): r"^random\+dot_product: all invariants hold$",
    ("fairseq-synth", "average"): "wrote the average of 2 checkpoints to runs/random/average.pt",
    ("fairseq-synth", "materialize"): "wrote runs/seeded/full.pt: [1-9][0-9]* tensors drawn from their seed",
}


def output(words, status=0):
    """What a command prints, run in this process where it can be; `status`: None for any."""
    program, *rest = words
    if program == "python":
        sizes = ["--train", "300", "--valid", "20", "--test", "13"]
        command = [sys.executable, str(REPOSITORY / rest[0]), *rest[1:], *sizes]
        return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    if program == "mkdir":
        Path(rest[-1]).mkdir(parents=True)
        return ""
    rest = [str(USER_DIR) if word == "fairseq_synth" else word for word in rest]
    if program == "fairseq-synth":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            found = synth_command(rest)
        assert status is None or found == status, printed.getvalue()
        return printed.getvalue()
    return call_command(program[len("fairseq-") :].replace("-", "_"), *rest, *small(program, rest))


def small(program, words):
    """More options, for a model and a budget of seconds."""
    task = words[words.index("--task") + 1] if "--task" in words else None
    if program == "fairseq-preprocess":
        return []
    if program == "fairseq-train":
        return [*SMALL[task], *CPU]
    if program == "fairseq-eval-lm":
        return [*CPU, *(["--tokens-per-sample", "16", "--batch-size", "2"] if task == "streaming_lm" else [])]
    return [*CPU, "--max-len-b", "5"]


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """All commands in one empty folder. Command's number -> what it printed, or the exception."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("day"))
        for number, (words, log) in enumerate(COMMANDS):
            try:
                found[number] = output(words, None if "doctor" in words else 0)
            except BaseException as error:
                found[number] = error
                continue
            if log is not None:
                Path(log).write_text(found[number])
            if words[-1] == "runs/random" and words[0] == "fairseq-train":
                for epoch in (5, 6):  # two updates make no six epochs
                    shutil.copy("runs/random/checkpoint_last.pt", f"runs/random/checkpoint{epoch}.pt")
        found["files"] = {os.path.relpath(os.path.join(top, name)) for top, _, names in os.walk(".") for name in names}
    return found


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=["-".join(words[:2]) for words, _ in COMMANDS])
def test_a_command_as_written(number, day):
    words = COMMANDS[number][0]
    expected = [text for key, text in SAYS.items() if words[: len(key)] == list(key) or set(key) <= set(words)]
    assert expected, "say in SAYS what it prints"
    if isinstance(day[number], BaseException):
        raise day[number]
    for text in expected:
        assert re.search(text, day[number], re.M), day[number][-3000:]


def test_what_is_printed_lies_where_the_texts_say(day):
    assert {"runs/random/train.log", "runs/random/generate-test.txt", "runs/lm/test.log", "results.html", "curves.png",
            "runs/random/maps/map-encoder-self-random.png", "runs/random/pictures/attention-2-cross.png",
            "runs/dot_product/attention/attention-1.npz"} <= day["files"]  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_the_shell_can_read_it(name):
    for block in re.findall(r"^```bash\n(.*?)^```", (REPOSITORY / name).read_text(), re.M | re.S):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ the table of variants
LETTERS = {"d": 12, "h": 3, "f": 10, "N": 6, "a": 2, "b": 3, "r": 5, "M": 7, "A": 6, "E": 8}
WIDTHS = {"embed_dim": LETTERS["d"], "attention_heads": LETTERS["h"]}
DOT = {"encoder_self_attention": "dot_product"}


def variants():
    """name -> cells of its row: name, what it computes, parameters, longest input, speed, paper."""
    section = re.search(r"^## Attentions\n(.*?)^## ", README, re.M | re.S).group(1)
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("| `")]
    return {re.match(r"`([\w+-]+)", cells[0]).group(1): cells for cells in rows}


def written(name, index=0):
    """The value of a formula in the row's cell of parameters, which says `2 d²` for 2 * d**2."""
    formula = re.findall(r"`(.*?)`", variants()[name][2])[index].replace("²", "**2")
    return eval(re.sub(r"(?<=[\w)])\s+(?=[\w(])", "*", formula), {}, LETTERS)


def build(arch="synth_transformer", **options):
    words = dictionary()
    task = Namespace(source_dictionary=words, target_dictionary=words)
    model = ARCH_MODEL_REGISTRY[arch]
    return model.build_model(model.defaults(**options) if arch == "adaptive_span_lm" else Namespace(**options), task)


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
    for name in SCORERS:
        rank = {"synthesizer_rank": LETTERS["r"]} if name == "factorized_random" else {}
        longest = layer(encoder_self_attention=name, **rank).self_attn.scorer.max_length
        assert (variants()[name][3] == "N") == (longest is not None), name


def test_the_feed_forward_that_persistent_memory_replaces():
    memory = {"persistent_memory": LETTERS["M"], **DOT}
    gone = size(layer(keep_feed_forward=True, **memory)) - size(layer(**memory))
    assert gone == written("--persistent-memory", 1)
