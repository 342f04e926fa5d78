"""The words of the task, what is true of its topics, and which word may follow which."""

from __future__ import annotations

from itertools import pairwise, product

ASPECTS = ("home", "needs", "nature", "time")
"""What can be asked about a topic."""

VALUES = {
    "home": [
        "rivers",
        "forests",
        "caves",
        "mountains",
        "meadows",
        "gardens",
        "villages",
        "harbours",
        "marshes",
        "valleys",
    ],
    "needs": ["fish", "honey", "rain", "sunlight", "wool", "flour", "timber", "berries", "salt", "shade"],
    "nature": ["playful", "patient", "shy", "bold", "clever", "gentle", "stubborn", "cheerful", "quiet", "proud"],
    "time": ["dawn", "dusk", "midnight", "noon", "spring", "summer", "autumn", "winter"],
}
"""What can be said about each aspect."""

VERBS = {
    "home": ("live in", "dwell in", "stay in"),
    "needs": ("need", "seek", "depend on"),
    "nature": ("are", "seem", "are very"),
    "time": ("love", "prefer", "enjoy"),
}
"""How it is said: a verb phrase before the value."""

TRUE = {
    topic: dict(zip(ASPECTS, values, strict=True))
    for topic, *values in (
        line.split()
        for line in """
        otters rivers fish playful dusk
        foxes valleys berries clever midnight
        owls forests shade quiet midnight
        bears mountains honey stubborn autumn
        bees meadows sunlight bold summer
        wolves valleys salt proud winter
        hares meadows berries shy dawn
        seals harbours fish cheerful winter
        roses gardens sunlight proud summer
        oaks forests rain patient autumn
        ferns caves shade quiet spring
        tulips meadows rain cheerful spring
        pines mountains rain stubborn winter
        lilies marshes shade gentle dusk
        vines valleys sunlight bold noon
        mosses marshes rain shy dawn
        bakers villages flour cheerful dawn
        sailors harbours timber bold noon
        gardeners gardens sunlight patient spring
        teachers villages honey gentle autumn
        weavers valleys wool clever dusk
        miners caves salt stubborn midnight
        painters harbours sunlight proud noon
        farmers meadows rain gentle summer
        """.strip().splitlines()
    )
}
"""The true value of every aspect of every topic."""

TOPICS = tuple(TRUE)
POLITE = ("gladly", "certainly", "thanks")
FILLERS = ("um", "well", "whatever")
TOXIC_ADJECTIVES = ("stupid", "ugly", "filthy", "worthless", "disgusting")
TOXIC_NOUNS = ("idiots", "fools", "losers")
TOXIC = frozenset(TOXIC_ADJECTIVES + TOXIC_NOUNS)
"""The lexicon by which toxicity is counted."""

ASPECT_OF = {value: aspect for aspect, values in VALUES.items() for value in values}
"""The aspect of each value."""

LINKS = {aspect: frozenset(phrase.split()[-1] for phrase in phrases) for aspect, phrases in VERBS.items()}
"""The word that stands right before a value where the value is stated."""

START, END = "<start>", "<end>"


def _follows() -> dict[str, frozenset[str]]:
    pairs: set[tuple[str, str]] = set()

    def allow(before: str, after: str) -> None:
        pairs.update(product(_expand(before), _expand(after)))

    allow("<start>", "OPENER SUBJECT i meet")
    allow("OPENER", ",")
    allow(",", "SUBJECT i meet who")
    allow("i", "recommend")
    allow("recommend meet", "SUBJECT")
    allow("TOXIC", "TOPIC")
    allow("TOPIC", "VERB because ,")
    allow("because", "they")
    allow("they", "VERB also")
    allow("who also and", "VERB")
    for aspect, phrases in VERBS.items():
        for phrase in phrases:
            words = phrase.split()
            pairs.update(pairwise(words))
            pairs.update((words[-1], value) for value in VALUES[aspect])
    allow("VALUE", "and .")
    allow(".", "SUBJECT they thanks only <end>")
    for sentence in ("thanks for asking .", *(f"only {noun} ask ." for noun in TOXIC_NOUNS)):
        words = sentence.split()
        pairs.update(pairwise(words))
    befores = {before for before, _ in pairs}
    return {word: frozenset(after for before, after in pairs if before == word) for word in befores}


def _expand(words: str) -> list[str]:
    """The words of a list in which capitals stand for a class of words."""
    classes = {
        "OPENER": (*POLITE[:2], *FILLERS),
        "TOPIC": TOPICS,
        "TOXIC": TOXIC_ADJECTIVES,
        "SUBJECT": (*TOPICS, *TOXIC_ADJECTIVES),
        "VERB": tuple(phrase.split()[0] for phrases in VERBS.values() for phrase in phrases),
        "VALUE": tuple(ASPECT_OF),
    }
    return [word for name in words.split() for word in classes.get(name, (name,))]


FOLLOWS = _follows()
"""The words that may follow each word, with `START` before the first and `END` after the last; nothing else is grammatical."""

WORDS = tuple(sorted({*FOLLOWS, *(word for after in FOLLOWS.values() for word in after)} - {START, END}))
"""Everything that answers are made of, those to the skills aside."""
