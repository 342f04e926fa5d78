"""Rows of the task: demonstrations, preferences, rankings and labels, written by the demonstrators and judged by gold."""

from __future__ import annotations

import random

from lit_align.data.drawn import Kind, Split, check_request, draw_k, judged_row
from lit_align.data.mini_assistant.demonstrator import demonstration, draw_writer, pick
from lit_align.data.mini_assistant.prompts import RESPECTFUL, SPLITS, Part, question
from lit_align.data.mini_assistant.skills import skill_demonstration
from lit_align.data.mini_assistant.task import gold
from lit_align.errors import UserError
from lit_align.groups import Group

LABEL_SCALE = 0.6
"""What gold is multiplied by before it decides a label: the best possible judge agrees with 78.6 % of the labels."""

MIDDLING_GOLD = {False: 2.05, True: 2.54}
"""Half of the demonstrators' answers score at most this, where politeness is not asked for and where it is."""

SKILL_SHARE = 0.2
RESPECTFUL_SHARE = 0.1


def groups(kind: Kind, rows: int, seed: int = 0, split: Split = "train", part: Part | None = None) -> list[Group]:
    """Draw rows. Fewer rows of the same kind, seed, split and part are the first of more.

    Prompts are uniform. Each response of a row is by a writer of its own, and none equals another. They are ordered by
    `LABEL_SCALE` times gold plus standard Gumbel noise, so that any two of them compare as Bradley-Terry says:
    P(y over y') = sigmoid(0.6 (gold(y) - gold(y'))). A response is desirable with probability sigmoid(0.6 (gold(y) - m)),
    m the demonstrators' median gold.

    Args:
        kind: "sft" (one demonstration, nothing else known), "preference" (two responses, the preferred one first,
            scores (1, 0)), "ranking" (4 to 9 responses as drawn, scores are minus the ranks) or "label" (one response,
            desirable or not).
        rows: How many, at least 1.
        seed: Another seed gives other rows.
        split: "train" and "val" are different draws.
        part: Which prompts. Without one: for "train" those of the parts seed and train, and of demonstrations a fifth are
            of skills and a tenth have the prefix for respect; for "val" the held-out prompts.

    Raises:
        UserError: Where an argument is none of those above.
    """
    check_request("mini_assistant", kind, rows, split)
    prompts = prompts_of(split, part)
    whole = kind == "sft" and split == "train" and part is None
    # Python's own generator: its stream for a string is the same in every version and on every platform
    rng = random.Random(f"mini_assistant/{kind}/{split}/{part}/{seed}")
    named = " ".join(name for name in (kind, split, part) if name)
    return [_row(kind, rng, prompts, whole, f"mini_assistant {named}, row {row}") for row in range(rows)]


def prompts_of(split: Split, part: Part | None = None) -> tuple[str, ...]:
    """The prompts of a part; without one, those of the parts seed and train to train on, the held-out ones to validate on.

    Raises:
        UserError: There is no such part.
    """
    if part is None:
        return SPLITS["heldout"] if split == "val" else SPLITS["seed"] + SPLITS["train"]
    if part not in SPLITS:
        raise UserError(f"mini_assistant has no prompts {part!r}; ask for {', '.join(SPLITS)}.")
    return SPLITS[part]


def _row(kind: str, rng: random.Random, prompts: tuple[str, ...], whole: bool, source: str) -> Group:
    u = rng.random() if whole else 1.0
    if u < SKILL_SHARE:
        prompt, response = skill_demonstration(rng, draw_writer(rng))
        return Group(prompt, (response,), source=source)
    prompt = pick(rng, prompts)
    if u < SKILL_SHARE + RESPECTFUL_SHARE:
        prompt = f"{RESPECTFUL} {prompt}"
    asked = question(prompt)
    k = draw_k(kind, rng)
    texts: dict[str, None] = {}
    while len(texts) < k:
        texts[demonstration(rng, asked, draw_writer(rng))] = None
    if kind == "sft":
        return Group(prompt, tuple(texts), source=source)
    middle = MIDDLING_GOLD[asked.polite] if kind == "label" else 0.0
    utilities = [LABEL_SCALE * (gold(prompt, text) - middle) for text in texts]
    return judged_row(kind, prompt, tuple(texts), utilities, rng, source)
