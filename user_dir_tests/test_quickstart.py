"""The quick start: the grammar speaks both languages well, the helpers and the script work."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "examples" / "quickstart"


@pytest.fixture(scope="module")
def load():
    """Imports a module of examples/quickstart, which is a folder of scripts and no package."""
    sys.path.insert(0, str(HERE))
    yield importlib.import_module
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def grammar(load):
    return load("grammar")


def noun(grammar, word):
    return next(n for group in grammar.NOUNS.values() for n in group if n.singular == word)


def verb(grammar, base):
    return next(v for v in grammar.VERBS + grammar.CLAUSE_VERBS if v.base == base)


def phrase(grammar, sentences, determiner, adjective, word, plural=False):
    row = next(r for r in grammar.DETERMINERS if r[0] == determiner)
    adjectives = [a for group in grammar.ADJECTIVES.values() for a in group if a[0] == adjective]
    chosen, thing = (adjectives or [None])[0], noun(grammar, word)
    gender = "p" if plural else "m" if thing.gender == "w" else thing.gender
    english = sentences.english_noun(row[plural], chosen, thing, plural)
    german = {c: sentences.german_noun(c, row, chosen, thing, gender, "") for c in grammar.CASES}
    return grammar.Phrase(english, english, "p" if plural else "3", german)


@pytest.mark.parametrize(
    "word, case, plural, german",
    [
        ("dog", "gen", False, "Hundes"),
        ("dog", "dat", True, "Hunden"),
        ("boy", "acc", False, "Jungen"),
        ("boy", "nom", False, "Junge"),
        ("car", "gen", False, "Autos"),
        ("car", "dat", True, "Autos"),
        ("woman", "gen", False, "Frau"),
        ("woman", "dat", True, "Frauen"),
        ("house", "gen", False, "Hauses"),
        ("house", "dat", True, "Häusern"),
        ("girl", "gen", False, "Mädchens"),
    ],
)
def test_nouns_decline(grammar, word, case, plural, german):
    assert noun(grammar, word).decline(case, plural) == german


@pytest.mark.parametrize(
    "determiner, adjective, word, plural, english, german",
    [
        ("the", "old", "man", False, "the old man", "der den dem des / alte alten alten alten"),
        ("a", "old", "man", False, "an old man", "ein einen einem eines / alter alten alten alten"),
        ("a", "red", "flower", False, "a red flower", "eine eine einer einer / rote rote roten roten"),
        ("a", "dark", "car", False, "a dark car", "ein ein einem eines / dunkles dunkles dunklen dunklen"),
        ("our", "new", "car", True, "our new cars", "unsere unsere unseren unserer / neuen neuen neuen neuen"),
    ],
)  # fmt: skip
def test_determiners_and_adjectives_agree(load, grammar, determiner, adjective, word, plural, english, german):
    result = phrase(grammar, load("sentences"), determiner, adjective, word, plural)
    assert result.english == english
    articles, adjectives = (part.split() for part in german.split(" / "))
    for case, article, form in zip(grammar.CASES, articles, adjectives):
        assert result.german[case].split()[:2] == [article, form]


ORDERS = {
    "second": ("the man calls him today", "der Mann ruft ihn heute an"),
    "first": ("does the man call him today", "ruft der Mann ihn heute an"),
    "front": ("today, the man calls him", "heute ruft der Mann ihn an"),
    "last": ("", "der Mann ihn heute anruft"),
    "to": ("to call him today", "ihn heute anzurufen"),
}


def calling(grammar, sentences, **changes):
    him = next(p for p in grammar.PRONOUNS if p.english == "he")
    subject = phrase(grammar, sentences, "the", "", "man")
    options = dict(direct=him, time=("today", "heute"))
    options.update(changes)
    return grammar.Clause(subject, verb(grammar, "call"), **options)


@pytest.mark.parametrize("order", ORDERS)
def test_the_verb_stands_where_german_wants_it(load, grammar, order):
    clause, (english, german) = calling(grammar, load("sentences")), ORDERS[order]
    assert clause.german(order) == german
    if english:
        assert clause.english(order) == english


@pytest.mark.parametrize(
    "changes, english, german, last",
    [
        (dict(tense="past"), "the man called him today", "hat ihn heute angerufen", "angerufen hat"),
        (dict(tense="future"), "the man will call him today", "wird ihn heute anrufen", "anrufen wird"),
        (dict(modal=["can", "cannot", "kann", "können"]), "the man can call him today",
         "kann ihn heute anrufen", "anrufen kann"),
        (dict(modal=["want to", "-", "will", "wollen"]), "the man wants to call him today",
         "will ihn heute anrufen", "anrufen will"),
        (dict(negated=True), "the man does not call him today", "ruft ihn heute nicht an", "nicht anruft"),
        (dict(negated=True, tense="past"), "the man did not call him today",
         "hat ihn heute nicht angerufen", "nicht angerufen hat"),
    ],
)  # fmt: skip
def test_tenses_modals_and_negation(load, grammar, changes, english, german, last):
    clause = calling(grammar, load("sentences"), **changes)
    assert clause.english() == english
    assert clause.german() == "der Mann " + german
    assert clause.german("last").endswith(last)


def test_a_pronoun_goes_before_the_particle(load, grammar):
    him = next(p for p in grammar.PRONOUNS if p.english == "he")
    clause = grammar.Clause(him, verb(grammar, "pick up"), "past", direct=him)
    assert clause.english() == "he picked him up"
    assert clause.german() == "er hat ihn abgeholt"


def test_corpus_is_reproducible_unique_and_clean(load):
    corpus = load("corpus")
    pairs = list(islice(corpus.sentence_pairs(7), 3000))
    assert pairs == list(islice(corpus.sentence_pairs(7), 3000))
    assert pairs[:100] != list(islice(corpus.sentence_pairs(8), 100))
    for side in zip(*pairs):
        assert len(set(side)) == len(side)
        for text in side:
            assert 4 <= len(text.split()) <= 18
            assert re.fullmatch(r"[A-ZÄÖÜ][A-Za-zäöüßÄÖÜ', ]*[.?]", text), text
            assert not re.search(r"  |, ,|,,|,[.?]|\b[Ii]n dem\b|\bvon dem\b", text), text


def test_corpus_splits_share_nothing(load, tmp_path, capsys):
    load("corpus").main(["--out", str(tmp_path), "--train", "800", "--valid", "100", "--test", "100"])
    assert "occur in train: 0" in capsys.readouterr().out
    for language, rest in (("en", "de"), ("de", "en")):
        parts = [(tmp_path / f"{s}.{language}").read_text("utf-8").splitlines() for s in ("train", "valid", "test")]
        assert [len(part) for part in parts] == [800, 100, 100]
        assert len(set().union(*parts)) == 1000, rest
    assert not list(tmp_path.glob("*.partial"))


def test_the_test_set_does_not_depend_on_the_size_of_train(load, tmp_path):
    for size in ("50", "70"):
        load("corpus").main(["--out", str(tmp_path / size), "--train", size, "--valid", "5", "--test", "5"])
    assert (tmp_path / "50" / "test.de").read_bytes() == (tmp_path / "70" / "test.de").read_bytes()


@pytest.mark.parametrize("size", ["0", "-3", "999999999"])
def test_corpus_refuses_sizes(load, tmp_path, size):
    with pytest.raises(SystemExit, match=f"--test {size}: must be between"):
        load("corpus").main(["--out", str(tmp_path / "out"), "--test", size])
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ progress and report
def log_line(kind, **values):
    return f"2026-01-01 00:00:00 | INFO | {kind} | {json.dumps(values)}\n"


def train_log():
    step = dict(epoch=1, ppl="9.5", wps="1000", wpb="100", train_wall="2")
    return [
        "INFO | fairseq_cli.train | num. shared model params: 1,234 (num. trained: 1,234)\n",
        log_line("train_inner", num_updates="20", **step),
        log_line("train_inner", num_updates="40", **step),
        log_line("valid", epoch=1, valid_ppl="7.5", valid_num_updates="40"),
        "INFO | fairseq_cli.train | done training in 4.0 seconds\n",
    ]


def test_progress_is_short_and_the_log_complete(load, tmp_path, capsys):
    log, source = tmp_path / "train.log", tmp_path / "source"
    source.write_text("".join(train_log()))
    options = ["--name", "toy", "--updates", "40", "--log", str(log), "--every", "0"]
    assert load("progress").main([*options, "--", "cat", str(source)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "toy: update 20/40, ppl 9.5, 1000 words/s",
        "toy: update 40/40, ppl 9.5, 1000 words/s",
        "toy: epoch 1 ends, valid ppl 7.5",
    ]
    assert log.read_text() == "".join(train_log())


def test_progress_shows_why_a_training_failed(load, tmp_path, capsys):
    command = ["sh", "-c", "echo ValueError: no such scorer >&2; exit 3"]
    options = ["--name", "toy", "--updates", "9", "--log", str(tmp_path / "log")]
    assert load("progress").main([*options, "--", *command]) == 3
    error = capsys.readouterr().err
    assert "ValueError: no such scorer" in error and "the training of toy failed" in error


def test_progress_takes_the_training_with_it(tmp_path):
    command = [sys.executable, str(HERE / "progress.py"), "--name", "toy", "--updates", "9"]
    command += ["--log", str(tmp_path / "log"), "--", "sh", "-c", "echo $$; exec sleep 60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text():
        time.sleep(0.05)
    process.terminate()
    assert b"toy was interrupted" in process.communicate(timeout=20)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "log").read_text()), 0)


def test_progress_ignores_half_a_record(load):
    assert load("progress").record('x | INFO | valid | {"epoch": 1, "va', "valid") is None


def finished_model(folder, texts):
    folder.mkdir()
    (folder / "train.log").write_text("".join(train_log()))
    rows = [f"H-{i}\t-0.5\t{text}\nD-{i}\t-0.5\t{text}\n" for i, text in texts]
    (folder / "generate-test.txt").write_text("".join(rows))


def test_report_orders_scores_and_signs(load, tmp_path, capsys):
    (tmp_path / "test.de").write_text("Das ist ein guter Satz.\nUnd noch ein anderer Satz.\n")
    finished_model(tmp_path / "toy", [(1, "Und noch ein anderer Satz."), (0, "Das ist ein guter Satz.")])
    load("report").main([f"toy={tmp_path}/toy", "--reference", f"{tmp_path}/test.de", "--seed", "3"])
    out = capsys.readouterr().out
    assert re.search(r"toy +1,234 +40 +1,000 +7\.50 +100\.0", out)
    assert "tok:13a" in out and "seed 3" in out


def test_report_refuses_lost_sentences(load, tmp_path):
    (tmp_path / "test.de").write_text("eins\nzwei\n")
    finished_model(tmp_path / "toy", [(0, "eins")])
    with pytest.raises(SystemExit, match="1 translations of 2 test sentences"):
        load("report").main([f"toy={tmp_path}/toy", "--reference", f"{tmp_path}/test.de", "--seed", "1"])


# ------------------------------------------------------------------------- the scripts
def run_script(script, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("UPDATES", "SENTENCES", "SEED", "OUT", "QUICK")}
    environment.update({"FAIRSEQ_SYNTH_PYTHON": sys.executable}, **variables)
    return subprocess.run(
        ["bash", "-c", script], cwd=str(ROOT), env=environment, capture_output=True, text=True, timeout=1200
    )


@pytest.mark.parametrize("name, value", [("UPDATES", "many"), ("SENTENCES", "0"), ("SEED", "-1"), ("THREADS", "1.5")])
def test_quickstart_refuses_numbers(tmp_path, name, value):
    done = run_script("bash examples/quickstart.sh", OUT=str(tmp_path / "out"), **{name: value})
    assert done.returncode != 0
    assert done.stderr.strip() == f"quickstart: error: {name}={value}: must be a positive number"
    assert not (tmp_path / "out").exists()


def test_quickstart_end_to_end(tmp_path):
    options = dict(QUICK="1", UPDATES="8", SENTENCES="400", OUT=str(tmp_path / "out"))
    done = run_script("bash examples/quickstart.sh", **options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^(\w+(?: \w+)?) +[\d,]+ +8 +[\d,-]+ +\d+\.\d\d +\d+\.\d$", done.stdout, re.M)
    assert rows == ["transformer", "random synthesizer"]
    assert "occur in train: 0" in done.stdout and "tok:13a" in done.stdout
    again = run_script("bash examples/quickstart.sh", **options)
    assert again.returncode == 0 and again.stdout.count("trained already") == 2 and "reusing the corpus" in again.stdout
    assert again.stdout.splitlines()[-5:] == done.stdout.splitlines()[-5:]


def source_environment(**variables):
    return run_script("set -eu; source examples/environment.sh; echo $PYTHON", **variables)


def test_environment_takes_a_given_python():
    assert source_environment().stdout.strip() == sys.executable
    done = source_environment(FAIRSEQ_SYNTH_PYTHON="/no/such/python")
    assert done.returncode != 0 and "/no/such/python: no such command" in done.stderr


def test_environment_names_what_is_wrong_with_a_python(tmp_path):
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    target = tmp_path / "venv"
    options = dict(FAIRSEQ_SYNTH_PYTHON="", FAIRSEQ_SYNTH_VENV=str(target))
    done = source_environment(FAIRSEQ_SYNTH_BASE=str(fake), **options)
    assert done.returncode != 0 and f"{fake} does not run" in done.stderr
    assert not target.exists()


def test_environment_leaves_foreign_folders_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    (tmp_path / "pyvenv.cfg").write_text("somebody's own environment")
    done = source_environment(FAIRSEQ_SYNTH_PYTHON="", FAIRSEQ_SYNTH_VENV=str(tmp_path))
    assert done.returncode != 0
    assert "was not made by this script" in done.stderr or "no usable Python" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pyvenv.cfg", "thesis.txt"]
