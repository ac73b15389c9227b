#!/usr/bin/env python3
"""A seeded English-German grammar: noun phrases and clauses that know both languages.

German articles, adjectives and verbs agree; the verb stands second, first (questions) or
last (subordinate clauses), separable prefixes and infinitives close the clause. A model
therefore has to look at other words to translate one: attention matters.
"""

import re
from dataclasses import dataclass, field
from random import Random
from typing import Dict, List, Optional, Sequence, Tuple, TypeVar

import lexicon

T = TypeVar("T")
CASES = ("nom", "acc", "dat", "gen")
GENDERS = ("m", "f", "n", "p")  # p: plural of any gender


def table(text: str, separator: str = ";") -> List[List[str]]:
    """Rows of blank-separated columns; `_` becomes a blank."""
    rows = text.replace("\n", separator).split(separator)
    return [[cell.replace("_", " ") for cell in row.split()] for row in rows if row.split()]


def endings(text: str) -> Dict[Tuple[str, str], str]:
    """`m f n p` endings of the four cases, `-` for none."""
    rows = [["" if cell == "-" else cell for cell in row] for row in table(text)]
    return {(case, g): cell for case, row in zip(CASES, rows) for g, cell in zip(GENDERS, row)}


DEFINITE = endings("der die das die; den die das die; dem der dem den; des der des der")
DER_WORD = endings("er e es e; en e es e; em er em en; es er es er")
EIN_WORD = endings("- e - e; en e - e; em er em en; es er es er")
ADJECTIVE = {
    "weak": endings("e e e en; en e e en; en en en en; en en en en"),
    "mixed": endings("er e es en; en e es en; en en en en; en en en en"),
    "strong": endings("er e es e; en e es e; em er em en; en er en er"),
}
# English singular and plural, German stem, endings, endings of the adjective, definite or not.
DETERMINERS = [
    ("the", "the", "", DEFINITE, "weak", True),
    ("a", "", "ein", EIN_WORD, "mixed", False),
    ("no", "no", "kein", EIN_WORD, "mixed", False),
    ("every", "", "jed", DER_WORD, "weak", False),
    ("this", "these", "dies", DER_WORD, "weak", True),
    ("my", "my", "mein", EIN_WORD, "mixed", True),
    ("his", "his", "sein", EIN_WORD, "mixed", True),
    ("our", "our", "unser", EIN_WORD, "mixed", True),
]
PARTICLES = {"up", "on", "off", "along", "away", "out"}
LIVING = ("person", "animal")


def pick(rng: Random, options: Sequence[T]) -> T:
    """random() is the one method whose sequence Python promises to keep."""
    return options[int(rng.random() * len(options))]


@dataclass
class Phrase:
    """A noun phrase in both languages."""

    english: str
    english_object: str
    person: str
    german: Dict[str, str]
    pronoun: bool = False


@dataclass
class Noun:
    singular: str
    plural: str
    gender: str
    german: str
    german_plural: str
    kind: str

    def decline(self, case: str, plural: bool) -> str:
        if plural:
            adds_n = case == "dat" and self.german_plural[-1] not in "ns"
            return self.german_plural + ("n" if adds_n else "")
        if self.gender == "w":
            return self.german if case == "nom" else self.german_plural
        if case == "gen" and self.gender != "f":
            syllables = len(re.findall("[aeiouyäöü]+", self.german.lower()))
            short = syllables == 1 and self.german[-1] not in "aeiou"
            return self.german + ("es" if short or self.german[-1] in "sßzx" else "s")
        return self.german


def read_nouns() -> Dict[str, List[Noun]]:
    nouns: Dict[str, List[Noun]] = {}
    for kind, text in lexicon.NOUNS.items():
        for english, gender, german, german_plural in table(text):
            singular, _, plural = english.partition("/")
            noun = Noun(singular, plural or singular + "s", gender, german, german_plural, kind)
            nouns.setdefault(kind, []).append(noun)
    nouns["living"] = nouns["person"] * 2 + nouns["animal"]
    nouns["any"] = [noun for kind in lexicon.NOUNS for noun in nouns[kind]]
    return nouns


@dataclass
class Verb:
    frame: str
    base: str
    past: str
    infinitive: str
    third: str
    participle: str
    auxiliary: str
    subjects: str
    objects: List[str] = field(default_factory=list)
    preposition: str = ""

    def __post_init__(self) -> None:
        self.prefix, _, stem = self.infinitive.rpartition("|")
        self.infinitive = self.prefix + stem
        first = stem[:-1] if stem.endswith("en") else stem[:-1] + "e"
        self.present = {"1": first, "3": self.third, "p": stem}
        self.to_infinitive = self.prefix + "zu" + stem if self.prefix else "zu " + stem


def read_verbs(text: str) -> List[Verb]:
    verbs = []
    for row in table(text):
        verb = Verb(*row[:8])
        verb.objects = row[8].split(",") if len(row) > 8 else []
        verb.preposition = row[9] if len(row) > 9 else ""
        verbs.append(verb)
    return verbs


NOUNS = read_nouns()
VERBS = read_verbs(lexicon.VERBS)
CLAUSE_VERBS = read_verbs(lexicon.CLAUSE_VERBS)
ADJECTIVES = {kind: table(text) for kind, text in lexicon.ADJECTIVES.items()}
PRONOUNS = [
    Phrase(en, obj, person, {"nom": nom, "acc": acc, "dat": dat}, pronoun=True)
    for en, obj, person, nom, acc, dat in table(lexicon.PRONOUNS)
]
TIMES = [(en, de, tenses.split(",")) for en, de, tenses in table(lexicon.TIMES)]
HABEN = {"1": "habe", "3": "hat", "p": "haben"}
SEIN = {"1": "bin", "3": "ist", "p": "sind"}
WAR = {"1": "war", "3": "war", "p": "waren"}
WERDEN = {"1": "werde", "3": "wird", "p": "werden"}


def third_person(base: str) -> str:
    """look for -> looks for, try -> tries."""
    word, _, rest = base.partition(" ")
    if word[-1] == "y" and word[-2] not in "aeou":
        word = word[:-1] + "ies"
    else:
        word += "es" if word.endswith(("s", "sh", "ch", "o")) else "s"
    return join(word, rest)


def join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


@dataclass
class Clause:
    """One verb with its phrases. tense: present, past (German Perfekt) or future."""

    subject: Phrase
    verb: Optional[Verb]  # None: to be, with `adjective`
    tense: str = "present"
    modal: Optional[List[str]] = None
    negated: bool = False
    adjective: Tuple[str, str] = ("", "")
    direct: Optional[Phrase] = None
    dative: Optional[Phrase] = None
    time: Tuple[str, str] = ("", "")
    manner: Tuple[str, str] = ("", "")
    tail: Tuple[str, str] = ("", "")  # prepositional phrase

    # English ------------------------------------------------------------------------------
    def english_rest(self, verb: str) -> str:
        """The verb and all that follows it; a pronoun goes before a particle."""
        direct = self.direct.english_object if self.direct else ""
        dative = self.dative.english_object if self.dative else ""
        head, _, particle = verb.rpartition(" ")
        if particle in PARTICLES and self.direct and self.direct.pronoun and direct:
            verb, direct = head, join(direct, particle)
        return join(verb, dative, direct, self.tail[0], self.manner[0])

    def english_verb(self) -> Tuple[str, str]:
        """The finite verb and what stays behind when a question inverts it."""
        third, negation = self.subject.person == "3", "not" if self.negated else ""
        if self.verb is None:
            present = {"1": "am", "3": "is", "p": "are"}[self.subject.person]
            past = "were" if self.subject.person == "p" else "was"
            finite = present if self.tense == "present" else past
            return finite, join(negation, self.adjective[0])
        base = self.verb.base
        if self.tense == "future":
            return "will", join(negation, self.english_rest(base))
        if self.modal and self.modal[0] != "want to":
            finite = self.modal[1] if self.negated else self.modal[0]
            return finite, self.english_rest(base)
        if self.modal:
            base = "want to " + base
        do = "did" if self.tense == "past" else "does" if third else "do"
        return do, join(negation, self.english_rest(base))

    def english(self, order: str = "second") -> str:
        finite, rest = self.english_verb()
        if order == "first":
            return join(finite, self.subject.english, rest, self.time[0])
        if order == "to":
            assert self.verb is not None
            return join("to", self.english_rest(self.verb.base), self.time[0])
        if finite in ("do", "does", "did") and not self.negated:  # the simple forms
            assert self.verb is not None
            base = "want to " + self.verb.base if self.modal else self.verb.base
            form = third_person(base) if finite == "does" else base
            finite, rest = "", self.english_rest(self.verb.past if finite == "did" else form)
        clause = join(self.subject.english, finite, rest)
        return join(self.time[0] + ",", clause) if order == "front" else join(clause, self.time[0])

    # German -------------------------------------------------------------------------------
    def german_verb(self) -> Tuple[str, str]:
        """The finite verb and what closes the clause."""
        person = self.subject.person
        if self.verb is None:
            return (SEIN if self.tense == "present" else WAR)[person], self.adjective[1]
        if self.tense == "future":
            return WERDEN[person], self.verb.infinitive
        if self.modal:
            return self.modal[3 if person == "p" else 2], self.verb.infinitive
        if self.tense == "past":
            return (HABEN if self.verb.auxiliary == "haben" else SEIN)[person], self.verb.participle
        return self.verb.present[person], self.verb.prefix

    def german_middle(self, with_time: bool) -> str:
        """Pronouns, time, dative, accusative, not, manner, prepositional phrase."""
        light = [self.direct.german["acc"] if self.direct and self.direct.pronoun else ""]
        light.append(self.dative.german["dat"] if self.dative and self.dative.pronoun else "")
        heavy = [self.dative.german["dat"] if self.dative and not self.dative.pronoun else ""]
        heavy.append(self.direct.german["acc"] if self.direct and not self.direct.pronoun else "")
        negation = "nicht" if self.negated else ""
        time = self.time[1] if with_time else ""
        return join(*light, time, *heavy, negation, self.manner[1], self.tail[1])

    def german(self, order: str = "second") -> str:
        finite, closing = self.german_verb()
        subject, middle = self.subject.german["nom"], self.german_middle(order != "front")
        if order == "to":
            assert self.verb is not None
            return join(middle, self.verb.to_infinitive)
        if order == "last":
            simple = self.verb is not None and self.tense == "present" and not self.modal
            return join(subject, middle, closing + finite if simple else join(closing, finite))
        if order == "first":
            return join(finite, subject, middle, closing)
        if order == "front":
            return join(self.time[1], finite, subject, middle, closing)
        return join(subject, finite, middle, closing)
