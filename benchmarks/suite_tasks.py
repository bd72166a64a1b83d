"""Small tasks of different kinds for `benchmarks/suite.py`: seeded questions, each with one right answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from orchestrator.prompts.source import PromptSource, chat, digest_of
from policies.base.records import Json, Prompt
from policies.base.seeds import derive_rng

Answer = int | str
Generator = Callable[[random.Random], tuple[str, Answer]]

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
COLORS = ["red", "blue", "green", "white", "black", "pink", "brown", "gray"]
NAMES = ["Ann", "Bob", "Carl", "Dora", "Eve", "Fred", "Gina", "Hugo"]
PLACES = ["kitchen", "garden", "school", "office", "park", "garage"]
ANIMALS = [
    "dog",
    "cat",
    "horse",
    "cow",
    "lion",
    "tiger",
    "bear",
    "fox",
    "rabbit",
    "sheep",
    "goat",
    "pig",
    "duck",
    "mouse",
    "whale",
]
THINGS = [
    "table",
    "chair",
    "book",
    "pen",
    "car",
    "shoe",
    "lamp",
    "spoon",
    "door",
    "shirt",
    "clock",
    "stone",
    "bottle",
    "hat",
    "cup",
]
WORDS = [
    "cat",
    "dog",
    "sun",
    "tree",
    "fire",
    "house",
    "water",
    "apple",
    "garden",
    "window",
    "elephant",
    "umbrella",
    "mountain",
    "butterfly",
]
_TRIES = 40
"""Questions drawn for each one wanted, before a generator is taken to have no more."""


def _weekday(rng: random.Random) -> tuple[str, Answer]:
    day, apart = rng.randrange(7), rng.randint(1, 6)
    way = rng.choice(["after", "before"])
    then = day + apart if way == "after" else day - apart
    return f"Which day of the week is {apart} days {way} {DAYS[day]}?", DAYS[then % 7]


def _largest(rng: random.Random) -> tuple[str, Answer]:
    numbers = rng.sample(range(10, 1000), 4)
    listed = ", ".join(str(n) for n in numbers)
    return f"Which of these numbers is the largest: {listed}?", max(numbers)


def _apples(rng: random.Random) -> tuple[str, Answer]:
    had, got, ate = rng.randint(5, 20), rng.randint(2, 15), rng.randint(1, 5)
    question = f"Tom has {had} apples. He gets {got} more and eats {ate}. How many apples does Tom have now?"
    return question, had + got - ate


def _position(rng: random.Random) -> tuple[str, Answer]:
    colors, place = rng.sample(COLORS, 4), rng.randrange(4)
    nth = ["first", "second", "third", "fourth"][place]
    listed = f"{colors[0]}, {colors[1]}, {colors[2]} and {colors[3]}"
    question = f"The boxes from left to right are {listed}. What color is the {nth} box?"
    return question, colors[place]


def _pattern(rng: random.Random) -> tuple[str, Answer]:
    unit, shown = rng.sample(COLORS, rng.choice([2, 3])), rng.randint(4, 7)
    listed = ", ".join(unit[i % len(unit)] for i in range(shown))
    return f"The pattern is {listed}. What comes next?", unit[shown % len(unit)]


def _animal(rng: random.Random) -> tuple[str, Answer]:
    animal = rng.choice(ANIMALS)
    listed = [animal, *rng.sample(THINGS, 2)]
    rng.shuffle(listed)
    return f"Which of these is an animal: {', '.join(listed)}?", animal


def _where(rng: random.Random) -> tuple[str, Answer]:
    names, places, asked = rng.sample(NAMES, 3), rng.sample(PLACES, 3), rng.randrange(3)
    facts = " ".join(
        f"{name} is in the {place}." for name, place in zip(names, places, strict=True)
    )
    return f"{facts} Where is {names[asked]}?", places[asked]


def _who(rng: random.Random) -> tuple[str, Answer]:
    (one, other), (has, has_too) = rng.sample(NAMES, 2), rng.sample(range(2, 60), 2)
    wanted = rng.choice(["more", "fewer"])
    question = f"{one} has {has} marbles and {other} has {has_too} marbles. Who has {wanted}?"
    return question, one if (has > has_too) == (wanted == "more") else other


def _claim(rng: random.Random) -> tuple[str, Answer]:
    one, other, holds = rng.randint(2, 30), rng.randint(2, 30), rng.random() < 0.5
    claimed = one + other + (0 if holds else rng.choice([-3, -2, -1, 1, 2, 3]))
    question = f"Is it true that {one} + {other} = {claimed}? Answer yes or no."
    return question, "yes" if holds else "no"


def _longest(rng: random.Random) -> tuple[str, Answer]:
    words = rng.sample(WORDS, 3)
    while len({len(word) for word in words}) < len(words):
        words = rng.sample(WORDS, 3)
    return f"Which word is the longest: {', '.join(words)}?", max(words, key=len)


GENERATORS: dict[str, Generator] = {
    "weekday": _weekday,
    "largest": _largest,
    "apples": _apples,
    "position": _position,
    "pattern": _pattern,
    "animal": _animal,
    "where": _where,
    "who": _who,
    "claim": _claim,
    "longest": _longest,
}


class SuiteTask(PromptSource):
    """The questions of one generator: the first `held_out` of its seed are held out, the rest are trained on."""

    class Config(PromptSource.Config):
        """Settings of a task."""

        task: str
        """Name of the generator."""
        split: Literal["train", "held_out"]
        """Which part of the questions."""
        held_out: int = 32
        """Questions that are never trained on."""
        train: int = 480
        """Questions to train on, or as many as the generator has."""
        seed: int = 0
        """Seed of the generator; the same in both parts."""

    config: Config

    def load(self) -> list[Prompt]:
        config = self.config
        rng = derive_rng(config.seed, "suite", config.task)
        found: dict[str, Answer] = {}
        wanted = config.held_out + config.train
        for _ in range(_TRIES * wanted):
            question, answer = GENERATORS[config.task](rng)
            found.setdefault(question, answer)
            if len(found) == wanted:
                break
        prompts = [self._prompt(question, answer) for question, answer in found.items()]
        cut = config.held_out
        return prompts[:cut] if config.split == "held_out" else prompts[cut:]

    def _prompt(self, question: str, answer: Json) -> Prompt:
        return Prompt(
            id=f"{self.config.task}-{digest_of(question)}", messages=chat(question), answer=answer
        )
