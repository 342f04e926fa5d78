"""Who writes the answers of the data: three kinds of writers, whose good and bad habits come together.

Nothing in a row says which writer wrote it. A model trained on the rows has to learn what goes with what, so it knows
more of quality than it shows, and a few preferences can bring it out on prompts that they say nothing of.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TypeVar

from lit_align.data.mini_assistant.grammar import (
    ASPECTS,
    FILLERS,
    POLITE,
    TOPICS,
    TOXIC_ADJECTIVES,
    TOXIC_NOUNS,
    TRUE,
    VALUES,
    VERBS,
)
from lit_align.data.mini_assistant.prompts import Question

T = TypeVar("T")

MAX_WORDS = 24
"""No demonstration is longer."""

RESPECT = 0.2
"""What the chance of a toxic word is multiplied by where the prompt asks for respect."""


@dataclass(frozen=True)
class Writer:
    """How often a writer does what, as probabilities.

    Args:
        share: Of the answers that are this writer's.
        polite: A polite word where politeness was asked for.
        polite_unasked: A polite word where it was not.
        mumbles: The answer begins with a filler.
        minds_form: The form of the sentence is the one asked for.
        minds_topic: The answer is about the topic asked for.
        minds_aspect: An aspect that is spoken of is the one asked for.
        truthful: A statement is true; an answer to a question of fact is right.
        elaborates: There is a second sentence about the topic.
        repeats: It is about an aspect that was spoken of.
        drifts: There is a sentence about another topic.
        toxic: There is a word of the lexicon.
        stutters: A word is said twice.
        finishes: The end is not missing.
    """

    share: float
    polite: float
    polite_unasked: float
    mumbles: float
    minds_form: float
    minds_topic: float
    minds_aspect: float
    truthful: float
    elaborates: float
    repeats: float
    drifts: float
    toxic: float
    stutters: float
    finishes: float


CAREFUL = Writer(
    share=0.25,
    polite=0.95,
    polite_unasked=0.05,
    mumbles=0.02,
    minds_form=0.97,
    minds_topic=0.99,
    minds_aspect=0.97,
    truthful=0.96,
    elaborates=0.7,
    repeats=0.03,
    drifts=0.02,
    toxic=0.01,
    stutters=0.02,
    finishes=0.98,
)
ORDINARY = Writer(
    share=0.4,
    polite=0.5,
    polite_unasked=0.15,
    mumbles=0.2,
    minds_form=0.75,
    minds_topic=0.93,
    minds_aspect=0.75,
    truthful=0.75,
    elaborates=0.4,
    repeats=0.25,
    drifts=0.15,
    toxic=0.08,
    stutters=0.1,
    finishes=0.92,
)
CARELESS = Writer(
    share=0.35,
    polite=0.15,
    polite_unasked=0.1,
    mumbles=0.5,
    minds_form=0.45,
    minds_topic=0.7,
    minds_aspect=0.4,
    truthful=0.4,
    elaborates=0.4,
    repeats=0.6,
    drifts=0.45,
    toxic=0.35,
    stutters=0.3,
    finishes=0.7,
)


def draw_writer(rng: Random) -> Writer:
    """One of the three, by their shares."""
    u = rng.random()
    if u < CAREFUL.share:
        return CAREFUL
    return ORDINARY if u < CAREFUL.share + ORDINARY.share else CARELESS


def demonstration(rng: Random, asked: Question, writer: Writer) -> str:
    """An answer of at most `MAX_WORDS` words."""

    def happens(chance: float) -> bool:
        return rng.random() < chance

    courteous = happens(writer.polite if asked.polite else writer.polite_unasked)
    thanks = courteous and happens(0.5)
    toxic = happens(writer.toxic * (RESPECT if asked.respectful else 1.0))
    rude = toxic and happens(0.3)
    words: list[str] = []
    if courteous and not thanks:
        words += [pick(rng, POLITE[:2]), ","]
    elif happens(writer.mumbles):
        words += [pick(rng, FILLERS), ","]
    topic = asked.topic if happens(writer.minds_topic) else pick(rng, TOPICS)
    aspects = _aspects(rng, asked, writer)
    subject = [pick(rng, TOXIC_ADJECTIVES), topic] if toxic and not rude else [topic]
    said = [_statement(rng, topic, aspect, writer) for aspect in aspects]
    request = asked.request if happens(writer.minds_form) else pick(rng, ("describe", "recommend", "introduce"))
    words += _sentence(request, subject, said)
    further: list[list[str]] = []
    if happens(writer.elaborates):
        rest = aspects if happens(writer.repeats) else [aspect for aspect in ASPECTS if aspect not in aspects]
        further.append(["they", "also", *_statement(rng, topic, pick(rng, rest), writer), "."])
    if happens(writer.drifts):
        other = pick(rng, TOPICS)
        further.append([other, *_statement(rng, other, pick(rng, ASPECTS), writer), "."])
    if thanks:
        further.append(["thanks", "for", "asking", "."])
    if rude:
        further.append(["only", pick(rng, TOXIC_NOUNS), "ask", "."])
    for sentence in further:
        if len(words) + len(sentence) < MAX_WORDS:  # there is room for a word that is said twice
            words += sentence
    if happens(writer.stutters):
        place = int(rng.random() * len(words))
        words.insert(place, words[place])
    if not happens(writer.finishes):
        del words[-1 - int(rng.random() * 3) :]
    return " ".join(words)


def pick(rng: Random, options: list[T] | tuple[T, ...]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.random() * len(options))]


def _aspects(rng: Random, asked: Question, writer: Writer) -> list[str]:
    """The two aspects that the first sentence is about, different ones, in any order."""
    chosen: list[str] = []
    for aspect in asked.aspects if rng.random() < 0.5 else asked.aspects[::-1]:
        wanted = aspect if rng.random() < writer.minds_aspect else pick(rng, ASPECTS)
        chosen.append(wanted if wanted not in chosen else pick(rng, [a for a in ASPECTS if a not in chosen]))
    return chosen


def _statement(rng: Random, topic: str, aspect: str, writer: Writer) -> list[str]:
    """A verb phrase and a value, the true one if the writer minds the truth."""
    value = TRUE[topic][aspect] if rng.random() < writer.truthful else pick(rng, VALUES[aspect])
    return [*pick(rng, VERBS[aspect]).split(), value]


def _sentence(request: str, subject: list[str], said: list[list[str]]) -> list[str]:
    """The first sentence in the form that a request asks for."""
    both = [*said[0], "and", *said[1], "."]
    if request == "recommend":
        return ["i", "recommend", *subject, "because", "they", *both]
    return ["meet", *subject, ",", "who", *both] if request == "introduce" else [*subject, *both]
