"""fairseq-synth results: logs of real trainings and made ones, scores, grouping, the page."""

import base64
import contextlib
import csv
import io
import json
import logging
import re
import statistics
import sys
from html.parser import HTMLParser

import pytest
from conftest import call_command, generate_args, train_args

from fairseq_synth.cli import main
from fairseq_synth.inspection import logs
from fairseq_synth.inspection.evaluations import evaluations
from fairseq_synth.inspection.grouping import Measured, rows

PNG = b"\x89PNG\r\n\x1a\n"
CONFIG = (
    "2026-01-01 00:00:00 | INFO | fairseq_cli.train | {{'_name': None, 'common': {{'_name': None, 'seed': {seed}, "
    "'log_format': 'json', 'tensorboard_logdir': None}}, 'task': {{'_name': 'translation', 'source_lang': 'a'}}, "
    "'model': {{'_name': '{arch}', 'dropout': {dropout}}}, 'checkpoint': {{'save_dir': 'x/{seed}'}}}}\n"
)
SIZES = "2026-01-01 00:00:00 | INFO | fairseq_cli.train | num. shared model params: 1,234 (num. trained: 1,000)\n"


def write_run(folder, seed, losses, arch="transformer", dropout=0.1):
    """A log in the json format: 20 updates per record, 1,000 words in 2 seconds (the first time 9), a validation."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.log", "w") as file:
        file.write(CONFIG.format(seed=seed, arch=arch, dropout=dropout) + SIZES)
        for i, loss in enumerate(losses, 1):
            step = {"epoch": i, "loss": f"{loss + 1}", "nll_loss": f"{loss}", "ppl": f"{2**loss:.2f}", "wpb": "50",
                    "train_wall": "9" if i == 1 else "2", "num_updates": f"{20 * i}"}  # fmt: skip
            valid = {f"valid_{k}": v for k, v in step.items() if k not in ("epoch", "train_wall")}
            file.write(f"2026-01-01 00:00:0{i} | INFO | train_inner | {json.dumps(step)}\n")
            file.write(f"2026-01-01 00:00:0{i} | INFO | valid | {json.dumps({'epoch': i, **valid})}\n")
    return folder


def results(capsys, *arguments):
    status = main(["results", *map(str, arguments)])
    assert status == 0, capsys.readouterr().err
    return capsys.readouterr().out


def table(capsys, *arguments):
    """Row by row, as dicts."""
    return list(csv.DictReader(io.StringIO(results(capsys, *arguments, "--format", "csv"))))


# ---------------------------------------------------------------------- real trainings
@contextlib.contextmanager
def logged(path):
    """Lines as the commands of fairseq print them."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)
    handler.close()


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Two seeds of one model: json and simple logs; the first one translates."""
    root = tmp_path_factory.mktemp("results")
    for seed, style in ((1, "json"), (2, "simple")):
        folder = root / f"tiny-seed{seed}"
        folder.mkdir()
        with logged(folder / "train.log"):
            call_command("train", *train_args(corpus, folder, "--seed", str(seed), "--log-format", style,
                                              "--log-interval", "2", "--criterion", "label_smoothed_cross_entropy",
                                              updates=6))  # fmt: skip
    (root / "tiny-seed1" / "last").mkdir()
    text = call_command("generate", *generate_args(corpus, root / "tiny-seed1" / "checkpoint_last.pt"))
    # better ones than six updates give: all but the last word of the reference
    references = dict(re.findall(r"^T-(\d+)\t(.*) \S+$", text, re.M))
    text = re.sub(r"^(H-(\d+)\t\S+)\t.*$", lambda m: f"{m[1]}\t{references[m[2]]}", text, flags=re.M)
    (root / "tiny-seed1" / "last" / "generate.txt").write_text(text)
    return root


def test_both_formats_tell_the_same(trained):
    one, other = (logs.read_run(str(trained / f"tiny-seed{seed}")) for seed in (1, 2))
    assert one.options["arch"] == other.options["arch"] == "synth_transformer"
    assert one.options["max_tokens"] == "200" and one.options["criterion"] == "label_smoothed_cross_entropy"
    assert [r["num_updates"] for r in one.steps] == [r["num_updates"] for r in other.steps] == [2, 4, 6]
    assert set(one.valid[0]) >= {"loss", "nll_loss", "ppl", "num_updates"} <= set(other.valid[0])
    assert one.parameters == one.trainable == other.parameters and one.updates == 6
    assert one.valid[-1]["ppl"] == pytest.approx(2 ** one.valid[-1]["nll_loss"], rel=0.01)


def test_seeds_share_a_row(trained, capsys):
    (row,) = table(capsys, trained / "tiny-seed1", trained / "tiny-seed2")
    assert row["model"] == "tiny" and row["seed"] == "1 2" and row["updates"] == "6"
    values = [logs.read_run(str(trained / f"tiny-seed{seed}")).valid[-1]["ppl"] for seed in (1, 2)]
    assert float(row["valid ppl"]) == pytest.approx(statistics.mean(values), rel=1e-4)
    assert float(row["valid ppl spread"]) == pytest.approx(statistics.stdev(values), rel=1e-3)
    assert row["BLEU last runs"] == "1"
    assert len(table(capsys, trained / "tiny-seed1", trained / "tiny-seed2", "--each")) == 2


def test_bleu_is_that_of_sacrebleu(trained, capsys):
    from sacrebleu.metrics import BLEU

    text = (trained / "tiny-seed1" / "last" / "generate.txt").read_text()
    hypotheses = re.findall(r"^H-\d+\t[^\t]+\t(.*)$", text, re.M)
    references = re.findall(r"^T-\d+\t(.*)$", text, re.M)
    assert len(hypotheses) == len(references) == 13
    metric = BLEU()
    expected = metric.corpus_score(hypotheses, [references]).score
    assert 50 < expected < 100
    printed = results(capsys, trained / "tiny-seed1")
    assert f"| {expected:.2f} |" in re.sub(" +", " ", printed) and f"- BLEU: {metric.get_signature()}" in printed
    assert "tok:none" in results(capsys, trained / "tiny-seed1", "--tokenize", "none")


def test_eval_lm(trained, tmp_path, capsys):
    run = write_run(tmp_path / "lm", 1, [3.0])
    (run / "eval.log").write_text("x | INFO | fairseq_cli.eval_lm | Loss (base 2): 2.5650, Perplexity: 5.92\n")
    (row,) = table(capsys, run)
    assert row["bits eval-lm"] == "2.565" and row["ppl eval-lm"] == "5.92"


# ---------------------------------------------------------------------- grouping
def test_only_the_seed_may_differ(tmp_path, capsys):
    runs = [
        write_run(tmp_path / "one" / "random", 1, [5.0, 3.0]),
        write_run(tmp_path / "two" / "random", 2, [5.0, 4.0]),
        write_run(tmp_path / "three" / "random", 3, [5.0, 4.0], dropout=0.2),
        write_run(tmp_path / "four" / "random", 4, [5.0]),
        write_run(tmp_path / "five" / "random", 1, [5.0, 3.5]),
    ]
    found = table(capsys, *runs)
    assert [row["seed"] for row in found] == ["1 2", "3", "4", "1"]
    assert found[0]["valid ppl"] == "12" and found[0]["valid ppl spread"] == f"{statistics.stdev([8, 16]):.6g}"
    assert found[1]["valid ppl spread"] == ""
    assert len({row["model"] for row in found}) == 4, "rows are told apart by their names"


def test_words_per_second_and_trainable(tmp_path, capsys):
    (row,) = table(capsys, write_run(tmp_path / "r", 1, [5.0, 4.0, 3.0]))
    assert row["words/s"] == "500" and row["parameters"] == "1234" and row["trainable"] == "1000"  # 20 * 50 / 2


def test_a_resumed_training_counts_once(tmp_path):
    log = write_run(tmp_path / "r", 1, [5.0, 4.0]) / "train.log"
    again = write_run(tmp_path / "again", 1, [6.0, 4.5, 3.0]) / "train.log"
    log.write_text(log.read_text() + again.read_text() + '2026 | INFO | train_inner | {"epoch": 3, "loss": "4')
    run = logs.read_run(str(tmp_path / "r"))
    assert [r["num_updates"] for r in run.valid] == [20, 40, 60] and run.valid[0]["nll_loss"] == 6.0


def test_the_log_of_hydra(tmp_path):
    folder = write_run(tmp_path / "r", 1, [5.0, 4.0])
    text = (folder / "train.log").read_text()
    (tmp_path / "h").mkdir()
    hydra = re.sub(r"^(.*?) \| INFO \| ([\w.]+) \| ", r"[\1,000][\2][INFO] - ", text, flags=re.M)
    (tmp_path / "h" / "hydra_train.log").write_text(hydra)
    assert hydra.count("[INFO] - ") == 6
    assert logs.read_run(str(tmp_path / "h"))[1:] == logs.read_run(str(folder))[1:]


def test_log_file_of_fairseq(tmp_path):
    """--log-file writes the messages alone, and more and more often the same ones."""
    folder = write_run(tmp_path / "r", 1, [5.0, 4.0])
    text = re.sub(r"^.*? \| INFO \| [\w.]+ \| ", "", (folder / "train.log").read_text(), flags=re.M)
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "train.log").write_text(text + text.splitlines(keepends=True)[-1])
    assert logs.read_run(str(tmp_path / "l"))[1:] == logs.read_run(str(folder))[1:]


def test_generations_of_several_sets(tmp_path):
    run = write_run(tmp_path / "r", 1, [3.0])
    for name in ("generate-test.txt", "generate-valid.txt", "last/generate.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("T-0\ta b c d\nH-0\t-1\ta b c d\n")
    assert [(e.label, round(e.scores[0].value)) for e in evaluations(str(run))] == [
        ("", 100), ("valid", 100), ("last", 100)]  # fmt: skip


def test_without_sacrebleu(tmp_path, monkeypatch):
    """fairseq's own number, named as such."""
    run = write_run(tmp_path / "r", 1, [3.0])
    (run / "generate.txt").write_text("T-0\ta\nH-0\t-1\ta\nGenerate test with beam=5: BLEU4 = 35.18, 66.6/43.2\n")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    (found,) = evaluations(str(run))
    (score,) = found.scores
    assert score.value == 35.18 and score.signature.startswith("fairseq's own")


def test_the_ports_loss(tmp_path, capsys):
    """Its nll_loss and perplexity are wrong; its loss nearly right, which is told."""
    run = write_run(tmp_path / "port", 1, [3.0])
    log = run / "train.log"
    log.write_text(log.read_text().replace("'task'", "'criterion': {'_name': 'adaptive_span_loss'}, 'task'"))
    (row,) = table(capsys, run)
    assert row["valid ppl"] == "16"  # 2 ** the loss, which write_run makes nll_loss + 1
    assert "The losses of port are too low" in results(capsys, run)


def test_options_of_a_namespace():
    """fairseq's older models print one."""
    line = "| {'_name': None, 'common': {'seed': 3}, 'model': Namespace(arch='transformer', dropout=0.3, x=['a', 'b']"
    line += ", adam_betas='(0.9, 0.98)', lr=[0.005], text=None), 'criterion': {'_name': 'cross_entropy'}}"
    found = logs.read_options(line)
    assert found == {"seed": "3", "arch": "transformer", "dropout": "0.3", "x": "['a', 'b']", "lr": "[0.005]",
                     "adam_betas": "(0.9, 0.98)", "text": "None", "criterion": "cross_entropy"}  # fmt: skip


def test_the_first_validation_set_counts(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    lines = [
        CONFIG.format(seed=1, arch="x", dropout=0.0).replace("'seed'", "'valid_subset': 'dev,test', 'seed'"),
        SIZES,
    ]
    for name, loss in (("dev", 2), ("test", 3)):
        lines.append(f"x | INFO | {name} | epoch 001 | valid on '{name}' subset | loss {loss} | num_updates 5\n")
    (folder / "train.log").write_text("".join(lines))
    assert logs.read_run(str(folder)).valid == [{"epoch": 1.0, "loss": 2.0, "num_updates": 5.0}]


def test_a_score_that_is_there_is_taken(tmp_path):
    run = write_run(tmp_path / "r", 1, [3.0])
    (run / "last").mkdir()
    score = {"name": "BLEU", "score": 36.27, "signature": "nrefs:1|tok:none", "verbose_score": "x"}
    (run / "last" / "bleu.json").write_text(json.dumps(score))
    (run / "other.json").write_text("[1]")
    (found,) = evaluations(str(run))
    assert found == ("last", (("BLEU", 36.27, "nrefs:1|tok:none"),), None, None)


def test_different_signatures_are_told(tmp_path, capsys):
    for i, signature in enumerate(("tok:none", "tok:13a")):
        run = write_run(tmp_path / f"r{i}x", 1, [3.0], dropout=i)
        (run / "bleu.json").write_text(json.dumps({"name": "BLEU", "score": 1, "signature": signature}))
    printed = results(capsys, tmp_path / "r0x", tmp_path / "r1x")
    assert "- BLEU of r0x: tok:none" in printed and "cannot be compared" in printed


# ---------------------------------------------------------------------- what is written
class Images(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]


def test_one_page_with_everything_in_it(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = [write_run(tmp_path / f"a&b{i}", 1, [5.0, 3.0], dropout=i / 10) for i in (1, 2)]
    page = tmp_path / "page.html"
    results(capsys, *runs, "--html", page, "--title", "<Our> runs")
    text = page.read_text()
    parser = Images()
    parser.feed(text)
    (source,) = parser.sources
    assert base64.b64decode(source.split("base64,")[1]).startswith(PNG), "the picture is inside, nothing is fetched"
    assert "script" not in parser.tags and "link" not in parser.tags
    assert "<Our>" not in text and "&lt;Our&gt; runs" in text and "<td>a&amp;b1</td>" in text
    assert "<td>dropout</td><td>0.1</td><td>0.2</td>" in text and "<td>seed</td>" not in text
    assert not list(tmp_path.glob("*.part"))


def test_curves_have_a_line_per_run(tmp_path):
    pytest.importorskip("matplotlib")
    from fairseq_synth.inspection.curves import curves_figure

    runs = [logs.read_run(str(write_run(tmp_path / f"r{i}", i, [5.0, 4.0, 3.0 + i]))) for i in (1, 2)]
    figure = curves_figure(rows([Measured(run, []) for run in runs]))
    validation, training = figure.axes
    for axes in (validation, training):
        assert [list(line.get_ydata()) for line in axes.lines] == [[5.0, 4.0, 4.0], [5.0, 4.0, 5.0]]
        assert list(axes.lines[0].get_xdata()) == [20, 40, 60]


def test_files(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "r", 1, [5.0, 3.0])
    assert results(capsys, run, "--out", tmp_path / "t.md", "--curves", tmp_path / "c.png") == ""
    assert (tmp_path / "t.md").read_text().startswith("| model | parameters |")
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)


def test_columns_are_left_out(tmp_path, capsys):
    run = write_run(tmp_path / "r", 1, [5.0, 3.0])
    head = results(capsys, run).splitlines()[0]
    assert " updates " in head and " valid ppl " in head
    hidden = results(capsys, run, "--hide", "updates", "valid ppl").splitlines()[0]
    assert [cell.strip() for cell in hidden.strip("|").split("|")] == [
        cell.strip() for cell in head.strip("|").split("|") if cell.strip() not in ("updates", "valid ppl")
    ]


def test_a_terminal_gets_narrow_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    runs = [write_run(tmp_path / ("long" * 6 + str(i)), i, [5.0, 3.0 + i], dropout=i // 2) for i in (1, 2, 3)]
    wide = results(capsys, *runs)
    assert max(map(len, wide.splitlines()[:3])) > 80
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    narrow = [line for line in results(capsys, *runs).splitlines() if line.startswith("|")]
    assert max(map(len, narrow)) <= 80 and len(narrow) == 2 * 4


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nowhere"], "nowhere: no such folder"),
        (["EMPTY"], "no training log; give the file itself"),
        (["RUN", "--title", "x"], "--title x: has an effect only with --html"),
        (["RUN", "--out", "nowhere/x"], "--out nowhere/x: the folder does not exist"),
        (
            ["RUN", "--hide", "BLEU"],
            "--hide BLEU: no such column; there are parameters, trainable, updates, minutes, words/s",
        ),
        (["RUN", "--tokenize", "what"], "--tokenize what: sacrebleu has"),
        (["RUN", "RUN"], "given more than once"),
        (["EMPTY/x.txt"], "tells of no training"),
        (["CUT"], "1 translations of 2 sentences: the file was cut off"),
    ],
)
def test_refused_in_one_line(tmp_path, capsys, arguments, says):
    run, cut = write_run(tmp_path / "run", 1, [3.0]), write_run(tmp_path / "cut", 1, [3.0])
    (cut / "generate.txt").write_text("T-0\ta\nH-0\t-1\ta\nT-1\tb\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "x.txt").write_text("nothing\n")
    places = {"RUN": run, "EMPTY": empty, "CUT": cut, "EMPTY/x.txt": empty / "x.txt"}
    assert main(["results", *[str(places.get(a, a)) for a in arguments]]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1
