"""What fairseq-generate and fairseq-eval-lm left in a run's folder, or in a folder below it."""

import json
import os
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from fairseq_synth.errors import UsageError
from fairseq_synth.inspection.logs import lines

LARGEST = 200 * 2**20  # bytes: what is larger is no output of these commands
_EVAL_LM = re.compile(r"Loss \(base 2\): (\d+(?:\.\d*)?|inf|nan), Perplexity: (\d+(?:\.\d*)?|inf|nan)")
_GENERATED = re.compile(r"Generate (\S+) with beam=(\d+): (.*)")


class Score(NamedTuple):
    """Of translations. metric: BLEU, chrF2, TER ..., as sacrebleu names it, with its signature."""

    metric: str
    value: float
    signature: str


class Translation(NamedTuple):
    """Number of a sentence -> its best hypothesis, and its reference; last: the line with fairseq's own score."""

    hypotheses: Dict[int, str]
    references: Dict[int, str]
    last: str


class Evaluation(NamedTuple):
    """label: the folder below the run's, "" for its own. One of the two kinds of numbers is there.

    scores: of a translation, a metric each; bits: per token (base 2), perplexity: of a language model.
    """

    label: str
    scores: Tuple[Score, ...] = ()
    bits: Optional[float] = None
    perplexity: Optional[float] = None


def evaluations(folder: str, tokenize: Optional[str] = None) -> List[Evaluation]:
    """Of the folder itself and of each folder in it, in alphabetical order.

    tokenize: score the translations again with this tokenizer of sacrebleu; None: take the score that is there, or
    else score with sacrebleu's default.
    """
    found = []
    for label in _labels(folder):
        place = os.path.join(folder, label)
        found += [*_translation(place, label, tokenize), *_language_model(place, label)]
    return found


def _labels(folder: str) -> List[str]:
    """The folder itself, and those in it."""
    return ["", *sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))]


def _files(folder: str, *endings: str) -> Iterator[str]:
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.endswith(endings) and os.path.isfile(path) and os.path.getsize(path) <= LARGEST:
            yield path


# ---------------------------------------------------------------------- translation
def _translation(folder: str, label: str, tokenize: Optional[str]) -> Iterator[Evaluation]:
    """The scores that are there, or one for every generate*.txt, labelled by its data if that is not `test`."""
    found: Dict[str, Score] = {}
    for path in _files(folder, ".json") if tokenize is None else ():
        for score in _scored(path):
            found.setdefault(score.metric, score)
    if found:
        yield Evaluation(label, tuple(found.values()))
        return
    for name, translation in _generated(folder, label):
        yield from _score(name, translation, tokenize)


def translations(folder: str) -> Dict[str, Translation]:
    """Label -> what fairseq-generate printed, of the folder and of each folder in it."""
    return {name: found for label in _labels(folder) for name, found in _generated(os.path.join(folder, label), label)}


def _generated(folder: str, label: str) -> Iterator[Tuple[str, Translation]]:
    """Every generate*.txt with its label: that of the folder, and the data if that is not `test`."""
    for path in _files(folder, ".txt", ".out"):
        subset = re.match(r"generate(?:-([^.]+))?\.", os.path.basename(path))
        translation = _read_generated(path) if subset else None
        if subset and translation and translation.references:  # else: sentences without a translation
            yield " ".join(part for part in (label, subset.group(1)) if part and part != "test"), translation


def _scored(path: str) -> Iterator[Score]:
    """The output of ``sacrebleu --format json``, one metric or several; nothing for other JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError, OSError):
        return
    for result in content if isinstance(content, list) else [content]:
        if isinstance(result, dict) and isinstance(result.get("name"), str) and "signature" in result:
            if isinstance(result.get("score"), (int, float)):
                yield Score(result["name"], float(result["score"]), str(result["signature"]))


def _read_generated(path: str) -> Translation:
    """Raises UsageError for an output that was cut off."""
    hypotheses: Dict[int, str] = {}
    references: Dict[int, str] = {}
    last = ""
    for line in lines(path):
        kind, _, rest = line.rstrip("\n").partition("-")
        number, _, text = rest.partition("\t")
        if kind == "H" and number.isdecimal() and len(number) < 19:
            hypotheses.setdefault(int(number), text.partition("\t")[2])  # H-n, score, text; --nbest: best first
        elif kind == "T" and number.isdecimal() and len(number) < 19:
            references[int(number)] = text
        elif line.startswith("Generate "):
            last = line
    if references and set(hypotheses) != set(references):
        raise UsageError(
            f"{path}: {len(hypotheses)} translations of {len(references)} sentences: the file was cut off; run "
            f"fairseq-generate again, or move the file away"
        )
    return Translation(hypotheses, references, last)


def _score(label: str, translation: Translation, tokenize: Optional[str]) -> Iterator[Evaluation]:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        yield from _without_sacrebleu(label, translation.last)
        return
    metric: Any = BLEU(tokenize=tokenize, force=True)
    order = sorted(translation.references)
    hypotheses, references = ([text[n] for n in order] for text in translation[:2])
    score = metric.corpus_score(hypotheses, [references]).score
    yield Evaluation(label, (Score("BLEU", score, str(metric.get_signature())),))


def _without_sacrebleu(label: str, last: str) -> Iterator[Evaluation]:
    found = _GENERATED.match(last)
    score = re.search(r"BLEU4? = (\d+(?:\.\d*)?)", found.group(3)) if found else None
    if score:
        yield Evaluation(label, (Score("BLEU", float(score.group(1)), "fairseq's own BLEU4 of the tokens"),))


# ---------------------------------------------------------------------- language model
def _language_model(folder: str, label: str) -> Iterator[Evaluation]:
    """The last line of fairseq-eval-lm in the folder's logs."""
    last = None
    for path in _files(folder, ".log", ".txt", ".out"):
        for line in lines(path):
            found = _EVAL_LM.search(line) if "Loss (base 2)" in line else None
            last = found or last
    if last:
        yield Evaluation(label, bits=float(last.group(1)), perplexity=float(last.group(2)))
