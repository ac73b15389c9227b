"""Random sentence pairs: which phrases, clauses and kinds of sentences grammar.py is asked for."""

from random import Random
from typing import Dict, List, Optional, Sequence, Tuple

import grammar
import lexicon
from grammar import (
    ADJECTIVE,
    ADJECTIVES,
    CASES,
    DETERMINERS,
    LIVING,
    NOUNS,
    PRONOUNS,
    TIMES,
    Clause,
    Phrase,
    Verb,
    join,
    pick,
    table,
)

Pair = Tuple[str, str]
MODALS = table(lexicon.MODALS)
MANNERS = [(en, de) for en, de in table(lexicon.MANNERS)]
PLACES, COMPANIES = table(lexicon.PLACES), table(lexicon.COMPANIES)
SUBORDINATORS = [(en, de, tenses.split(",")) for en, de, tenses in lexicon.SUBORDINATORS]
BY_FRAME: Dict[str, List[Verb]] = {}
for _verb in grammar.VERBS + grammar.CLAUSE_VERBS:
    BY_FRAME.setdefault(_verb.frame, []).append(_verb)
RELATIVES = {
    "nom": {"m": "der", "f": "die", "n": "das", "p": "die"},
    "acc": {"m": "den", "f": "die", "n": "das", "p": "die"},
}
NO_PHRASE = Phrase("", "", "3", {case: "" for case in CASES}, pronoun=True)


def chance(rng: Random, probability: float) -> bool:
    return rng.random() < probability


def possessive(rng: Random) -> Tuple[str, str]:
    """the king's / des Königs, to be wrapped around a noun."""
    owner = pick(rng, NOUNS["person"])
    gender = "m" if owner.gender == "w" else owner.gender
    german = join(grammar.DEFINITE["gen", gender], owner.decline("gen", plural=False))
    return f"the {owner.singular}'s", german


def noun_phrase(rng: Random, kinds: Sequence[str], definite: bool = False, simple: bool = False) -> Phrase:
    """Determiner, perhaps an adjective, noun, perhaps an owner or a relative clause."""
    noun = pick(rng, NOUNS[pick(rng, kinds)])
    plural = chance(rng, 0.3)
    options = [row for row in DETERMINERS if row[plural] and (row[5] or not definite)]
    determiner = DETERMINERS[0] if chance(rng, 0.5) else pick(rng, options)
    owner_en, owner_de = "", ""
    if determiner is DETERMINERS[0] and noun.kind not in LIVING and chance(rng, 0.25):
        owner_en, owner_de = possessive(rng)
    adjectives = ADJECTIVES["living" if noun.kind in LIVING else "thing"]
    adjective = pick(rng, adjectives) if chance(rng, 0.35) else None
    english = english_noun(owner_en or determiner[plural], adjective, noun, plural)
    gender = "p" if plural else "m" if noun.gender == "w" else noun.gender
    german = {c: german_noun(c, determiner, adjective, noun, gender, owner_de) for c in CASES}
    phrase = Phrase(english, english, "p" if plural else "3", german)
    if not simple and not owner_en and chance(rng, 0.08):
        phrase = with_relative(rng, phrase, noun, gender)
    return phrase


def english_noun(determiner: str, adjective: Optional[List[str]], noun: grammar.Noun, plural: bool) -> str:
    words = join(adjective[0] if adjective else "", noun.plural if plural else noun.singular)
    if determiner == "a" and words[0] in "aeiou":
        determiner = "an"
    return join(determiner, words)


def german_noun(
    case: str,
    determiner: Tuple,
    adjective: Optional[List[str]],
    noun: grammar.Noun,
    gender: str,
    owner: str,
) -> str:
    _, _, stem, forms, style, _ = determiner
    article = stem + forms[case, gender]
    middle = adjective[1].split("/")[-1] + ADJECTIVE[style][case, gender] if adjective else ""
    return join(article, middle, noun.decline(case, plural=gender == "p"), owner)


def with_relative(rng: Random, head: Phrase, noun: grammar.Noun, gender: str) -> Phrase:
    """the man who sings / der Mann, der singt; the book that I buy / das Buch, das ich kaufe."""
    if noun.kind in LIVING:
        word = Phrase(
            "who" if noun.kind == "person" else "that",
            "",
            head.person,
            {"nom": RELATIVES["nom"][gender]},
            pronoun=True,
        )
        clause = random_clause(rng, subject=word, kind=noun.kind, simple=True)
        english, german = clause.english(), clause.german("last")
    else:
        verbs = [verb for verb in BY_FRAME["A"] if noun.kind in verb.objects + ["any"]]
        clause = random_clause(rng, verb=pick(rng, verbs), simple=True)
        clause.direct = NO_PHRASE
        english = join("that", clause.english())
        german = join(RELATIVES["acc"][gender], clause.german("last"))
    declined = {case: f"{form}, {german}," for case, form in head.german.items()}
    return Phrase(join(head.english, english), join(head.english, english), head.person, declined)


def random_subject(rng: Random, kind: str) -> Phrase:
    return pick(rng, PRONOUNS) if chance(rng, 0.35) else noun_phrase(rng, [kind])


def random_object(rng: Random, verb: Verb, subject: Phrase, definite: bool, simple: bool) -> Phrase:
    living = set(verb.objects) & {"living", "person", "any"}
    if living and chance(rng, 0.3):
        others = [p for p in PRONOUNS if p.person != subject.person or p.person == "3"]
        return pick(rng, others)
    return noun_phrase(rng, verb.objects, definite, simple)


def prepositional(rng: Random, options: Sequence[List[str]], kind: str) -> Tuple[str, str]:
    english, german, case = pick(rng, options)
    phrase = noun_phrase(rng, [kind], definite=True, simple=True)
    return join(english, phrase.english), join(german, phrase.german[case])


def random_tail(rng: Random, verb: Verb, subject: Phrase) -> Tuple[str, str]:
    """The prepositional phrase that the verb needs, or perhaps one more."""
    if verb.frame == "M":
        return prepositional(rng, [["into", "in", "acc"]], "place")
    if verb.frame == "L":
        return prepositional(rng, PLACES, "place")
    if verb.frame == "P":
        german, _, case = verb.preposition.partition("+")
        phrase = random_object(rng, verb, subject, definite=True, simple=True)
        return phrase.english_object, join(german, phrase.german[case])
    if verb.frame in ("I", "A", "DA") and chance(rng, 0.2):
        return prepositional(rng, PLACES, "place")
    if verb.frame in ("I", "A") and chance(rng, 0.1):
        return prepositional(rng, COMPANIES, "person")
    return "", ""


def random_clause(
    rng: Random,
    subject: Optional[Phrase] = None,
    verb: Optional[Verb] = None,
    kind: str = "",
    tenses: Sequence[str] = ("present", "past", "future"),
    simple: bool = False,
) -> Clause:
    """A clause of one of the tenses; `simple` keeps relative clauses from nesting."""
    if verb is None:
        frames = ["I", "M", "L", "D", "A", "A", "A", "A", "DA", "P"]
        options = [v for v in BY_FRAME[pick(rng, frames)] if kind != "animal" or v.subjects == "living"]
        verb = pick(rng, options or BY_FRAME["I"][:1])
    if subject is None:
        subject = pick(rng, PRONOUNS) if simple else random_subject(rng, verb.subjects)
    clause = Clause(subject, verb, pick(rng, ("present", "past", pick(rng, tenses))))
    if clause.tense not in tenses:
        clause.tense = tenses[0]
    clause.negated = chance(rng, 0.12)
    if clause.tense == "present" and chance(rng, 0.3):
        clause.modal = pick(rng, [row for row in MODALS if row[1] != "-" or not clause.negated])
    if verb.frame in ("D", "DA"):
        kinds = ["person"] if verb.frame == "DA" else verb.objects
        clause.dative = noun_phrase(rng, kinds, clause.negated, simple=True)
    if verb.frame in ("A", "DA"):
        clause.direct = random_object(rng, verb, subject, clause.negated, simple)
    clause.tail = random_tail(rng, verb, subject)
    if verb.frame in ("I", "M", "A") and chance(rng, 0.12):
        clause.manner = pick(rng, MANNERS)
    if chance(rng, 0.35):
        clause.time = random_time(rng, clause.tense)
    return clause


def random_time(rng: Random, tense: str) -> Tuple[str, str]:
    english, german, _ = pick(rng, [row for row in TIMES if tense in row[2]])
    return english, german


def copula(rng: Random, subject: Optional[Phrase] = None, tense: str = "") -> Clause:
    """the house is old / das Haus ist alt."""
    kind = pick(rng, ("person", "animal", "object", "place", "vehicle"))
    english, german = pick(rng, ADJECTIVES["living" if kind in LIVING else "thing"])
    subject = subject or noun_phrase(rng, [kind])
    clause = Clause(subject, None, tense or pick(rng, ("present", "past")))
    clause.adjective = english, german.split("/")[0]
    clause.negated = chance(rng, 0.15)
    return clause


def main_sentence(rng: Random) -> Pair:
    clause = copula(rng) if chance(rng, 0.2) else random_clause(rng)
    if not clause.negated and chance(rng, 0.15):
        return clause.english("first") + "?", clause.german("first") + "?"
    order = "front" if clause.time[0] and chance(rng, 0.6) else "second"
    return clause.english(order) + ".", clause.german(order) + "."


def subordinate_sentence(rng: Random) -> Pair:
    """because, if, when ...: before the main clause (then its verb comes first) or after it."""
    english, german, tenses = pick(rng, SUBORDINATORS)
    main = random_clause(rng, tenses=tenses, simple=True)
    side = copula(rng, tense=main.tense) if main.tense != "future" and chance(rng, 0.25) else None
    side = side or random_clause(rng, tenses=[main.tense], simple=True)
    side_en, side_de = join(english, side.english()), join(german, side.german("last"))
    if chance(rng, 0.4):
        main.time = "", ""
        return f"{side_en}, {main.english()}.", f"{side_de}, {main.german('first')}."
    return f"{main.english()} {side_en}.", f"{main.german()}, {side_de}."


def that_sentence(rng: Random) -> Pair:
    """says that ..., asks whether ...: the verb goes last."""
    frame, german = pick(rng, (("that", "dass"), ("that", "dass"), ("whether", "ob")))
    verb = pick(rng, BY_FRAME[frame])
    main = Clause(random_subject(rng, "person"), verb, pick(rng, ("present", "past")))
    side = copula(rng) if chance(rng, 0.2) else random_clause(rng, simple=True)
    return (
        f"{main.english()} {frame} {side.english()}.",
        f"{main.german()}, {german} {side.german('last')}.",
    )


def to_sentence(rng: Random) -> Pair:
    """tries to ...: zu, which a separable prefix takes into the verb."""
    verb = pick(rng, BY_FRAME["to"])
    main = Clause(random_subject(rng, verb.subjects), verb, pick(rng, ("present", "past")))
    side = random_clause(rng, subject=main.subject, tenses=["present"], simple=True)
    side.modal, side.negated, side.time = None, False, ("", "")
    return f"{main.english()} {side.english('to')}.", f"{main.german()}, {side.german('to')}."


def and_sentence(rng: Random) -> Pair:
    english, german = pick(rng, ((" and", " und"), (", but", ", aber")))
    first, second = (random_clause(rng, simple=True) for _ in range(2))
    return (
        f"{first.english()}{english} {second.english()}.",
        f"{first.german()}{german} {second.german()}.",
    )


KINDS = [main_sentence] * 9 + [subordinate_sentence] * 4 + [that_sentence] * 3
KINDS += [to_sentence] * 2 + [and_sentence] * 2
