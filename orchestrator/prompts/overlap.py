"""Keeps held-out prompts out of training: a score on prompts that were trained on measures memory."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from policies.base.errors import InputError, explain
from policies.base.records import Prompt

NUM_EXAMPLES = 3


def check_overlap(
    train: Sequence[Prompt],
    held_out: Sequence[Prompt],
    *,
    name: str = "prompts.held_out",
    other: str = "prompts.train",
) -> None:
    """Refuse sets that share a prompt, by id or by text; the caller decides whether to ask.

    Args:
        train: the prompts that `held_out` must have none of.
        held_out: the prompts to measure on.
        name: setting that `held_out` comes from.
        other: setting that `train` comes from.

    Raises:
        InputError: with how many are shared, and three of them.
    """
    shared = overlapping(train, held_out)
    if not shared:
        return
    called = {"prompts.held_out": "held-out", "prompts.train": "training", "prompts.test": "test"}
    known = called.get(other, "training")
    examples = "; ".join(f"{p.id}: {_question(p)[:60]!r}" for p in shared[:NUM_EXAMPLES])
    raise InputError(
        explain(
            f"{len(shared)} of {len(held_out)} {called[name]} prompts are {known} prompts too, e.g. {examples}",
            value=len(shared),
            where=f"{other} and {name}",
            fix="use disjoint files or slices (skip, take), or allow it (prompts.allow_overlap: true)",
        )
    )


def overlapping(train: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[Prompt]:
    """Held-out prompts that are in `train`, by id or by what they say."""
    ids = {prompt.id for prompt in train}
    texts = {_normalised(prompt) for prompt in train}
    return [p for p in held_out if p.id in ids or _normalised(p) in texts]


def _normalised(prompt: Prompt) -> tuple[str, ...]:
    # Another system message, other spaces or capitals do not make another question.
    return tuple(
        " ".join(unicodedata.normalize("NFKC", message.full_text).casefold().split())
        for message in prompt.messages
        if message.role != "system"
    )


def _question(prompt: Prompt) -> str:
    return prompt.messages[-1].content if prompt.messages else ""
