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


class Evaluation(NamedTuple):
    """label: the folder below the run's, "" for its own. One of the two kinds of numbers is there.

    bleu, signature, sentences: of a translation; bits: per token (base 2), perplexity: of a language model.
    """

    label: str
    bleu: Optional[float] = None
    signature: str = ""
    sentences: Optional[int] = None
    bits: Optional[float] = None
    perplexity: Optional[float] = None


def evaluations(folder: str, tokenize: Optional[str] = None) -> List[Evaluation]:
    """Of the folder itself and of each folder in it, in alphabetical order.

    tokenize: score the translations again with this tokenizer of sacrebleu; None: take the score that is there, or
    else score with sacrebleu's default.
    """
    names = sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
    found = []
    for label in ["", *names]:
        place = os.path.join(folder, label) if label else folder
        found += [*_translation(place, label, tokenize), *_language_model(place, label)]
    return found


def _files(folder: str, *endings: str) -> Iterator[str]:
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.endswith(endings) and os.path.isfile(path) and os.path.getsize(path) <= LARGEST:
            yield path


# ---------------------------------------------------------------------- translation
def _translation(folder: str, label: str, tokenize: Optional[str]) -> Iterator[Evaluation]:
    """The score that is there, or one for every generate*.txt, labelled by its data if that is not `test`."""
    for path in _files(folder, ".json") if tokenize is None else ():
        found = _scored(path)
        if found is not None:
            yield Evaluation(label, *found)
            return
    for path in _files(folder, ".txt", ".out"):
        subset = re.match(r"generate(?:-([^.]+))?\.", os.path.basename(path))
        if subset:
            hypotheses, references, last = _read_generated(path)
            name = " ".join(part for part in (label, subset.group(1)) if part and part != "test")
            yield from _score(name, path, hypotheses, references, last, tokenize)


def _scored(path: str) -> Optional[Tuple[float, str, Optional[int]]]:
    """The output of ``sacrebleu --format json``; None for other JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError, OSError):
        return None
    results = content if isinstance(content, list) else [content]
    for result in results:
        if isinstance(result, dict) and result.get("name") == "BLEU" and "signature" in result:
            if isinstance(result.get("score"), (int, float)):
                return float(result["score"]), str(result["signature"]), None
    return None


def _read_generated(path: str) -> Tuple[Dict[int, str], Dict[int, str], str]:
    """The best hypothesis and the reference of every sentence, and fairseq's own score."""
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
    return hypotheses, references, last


def _score(
    label: str, path: str, hypotheses: Dict[int, str], references: Dict[int, str], last: str, tokenize: Optional[str]
) -> Iterator[Evaluation]:
    """Raises UsageError for an output that was cut off."""
    if not references:  # sentences without a translation
        return
    if set(hypotheses) != set(references):
        raise UsageError(
            f"{path}: {len(hypotheses)} translations of {len(references)} sentences: the file was cut off; run "
            f"fairseq-generate again, or move the file away"
        )
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        yield from _without_sacrebleu(label, last)
        return
    metric: Any = BLEU(tokenize=tokenize, force=True)
    order = sorted(hypotheses)
    score = metric.corpus_score([hypotheses[n] for n in order], [[references[n] for n in order]]).score
    yield Evaluation(label, score, str(metric.get_signature()), len(order))


def _without_sacrebleu(label: str, last: str) -> Iterator[Evaluation]:
    found = _GENERATED.match(last)
    score = re.search(r"BLEU4? = (\d+(?:\.\d*)?)", found.group(3)) if found else None
    if score:
        yield Evaluation(label, float(score.group(1)), "fairseq's own BLEU4 of the tokens")


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
