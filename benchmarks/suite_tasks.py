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
ANIMALS = ["cat", "dog", "cow", "hen", "fox", "pig"]
NAMES = ["Ann", "Bob", "Carl", "Dora", "Eve", "Fred", "Gina", "Hugo"]
UNITS = [
    ("minutes", "hours", 60),
    ("days", "weeks", 7),
    ("months", "years", 12),
    ("inches", "feet", 12),
    ("cents", "dollars", 100),
    ("legs", "spiders", 8),
    ("wheels", "tricycles", 3),
    ("millimeters", "centimeters", 10),
]
ROMAN = [(50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]
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


def _sequence(rng: random.Random) -> tuple[str, Answer]:
    start, step = rng.randint(1, 30), rng.randint(2, 12)
    listed = ", ".join(str(start + i * step) for i in range(4))
    return f"What number comes next: {listed}?", start + 4 * step


def _units(rng: random.Random) -> tuple[str, Answer]:
    small, large, factor = rng.choice(UNITS)
    count = rng.randint(2, 15)
    return f"How many {small} are in {count} {large}?", count * factor


def _sort(rng: random.Random) -> tuple[str, Answer]:
    numbers = rng.sample(range(1, 60), 3)
    listed = ", ".join(str(n) for n in numbers)
    ordered = ", ".join(str(n) for n in sorted(numbers))
    return f"Sort these numbers from smallest to largest: {listed}", ordered


def _roman(rng: random.Random) -> tuple[str, Answer]:
    number = rest = rng.randint(2, 89)
    written = ""
    for value, sign in ROMAN:
        written += sign * (rest // value)
        rest %= value
    return f"What number is the Roman numeral {written}?", number


def _percent(rng: random.Random) -> tuple[str, Answer]:
    share, whole = rng.choice([10, 20, 25, 50, 75]), rng.choice(range(20, 401, 20))
    return f"What is {share}% of {whole}?", share * whole // 100


def _unknown(rng: random.Random) -> tuple[str, Answer]:
    added, x = rng.randint(3, 60), rng.randint(3, 40)
    return f"x + {added} = {added + x}. What is x?", x


def _apples(rng: random.Random) -> tuple[str, Answer]:
    had, got, ate = rng.randint(5, 20), rng.randint(2, 15), rng.randint(1, 5)
    question = f"Tom has {had} apples. He gets {got} more and eats {ate}. How many apples does Tom have now?"
    return question, had + got - ate


def _rounding(rng: random.Random) -> tuple[str, Answer]:
    number = rng.randint(11, 989)
    return f"Round {number} to the nearest ten.", (number + 5) // 10 * 10


def _position(rng: random.Random) -> tuple[str, Answer]:
    colors, place = rng.sample(COLORS, 4), rng.randrange(4)
    nth = ["first", "second", "third", "fourth"][place]
    listed = f"{colors[0]}, {colors[1]}, {colors[2]} and {colors[3]}"
    question = f"The boxes from left to right are {listed}. What color is the {nth} box?"
    return question, colors[place]


def _taller(rng: random.Random) -> tuple[str, Answer]:
    tall, middle, short = rng.sample(NAMES, 3)
    wanted = rng.choice(["tallest", "shortest"])
    facts = [f"{tall} is taller than {middle}.", f"{middle} is taller than {short}."]
    rng.shuffle(facts)
    return f"{' '.join(facts)} Who is the {wanted}?", tall if wanted == "tallest" else short


def _count(rng: random.Random) -> tuple[str, Answer]:
    kinds = rng.sample(ANIMALS, 3)
    listed = [rng.choice(kinds) for _ in range(rng.randint(5, 9))]
    question = f"Here is a list: {', '.join(listed)}. How many times does '{kinds[0]}' appear?"
    return question, listed.count(kinds[0])


def _parity(rng: random.Random) -> tuple[str, Answer]:
    number = rng.randint(10, 999)
    return f"Is {number} odd or even?", "odd" if number % 2 else "even"


GENERATORS: dict[str, Generator] = {
    "weekday": _weekday,
    "largest": _largest,
    "sequence": _sequence,
    "units": _units,
    "sort": _sort,
    "roman": _roman,
    "percent": _percent,
    "unknown": _unknown,
    "apples": _apples,
    "rounding": _rounding,
    "position": _position,
    "taller": _taller,
    "count": _count,
    "parity": _parity,
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
