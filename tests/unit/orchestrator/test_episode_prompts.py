"""The prompt source of episodes: starts become texts and metadata, and the two splits never meet."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.prompts.overlap import overlapping
from orchestrator.prompts.source import PROMPT_SOURCES
from policies.base.component import create
from policies.base.records import Message, Prompt


def load(**settings: Any) -> list[Prompt]:
    prompts: list[Prompt] = create(PROMPT_SOURCES.parse({"type": "episodes", **settings})).load()
    return prompts


def test_every_combination_is_a_prompt_with_its_values_in_text_and_metadata() -> None:
    prompts = load(
        split="all",
        template="{stones} {item} left.",
        starts={"stones": {"low": 3, "high": 4}, "item": ["coins", "nuts"]},
    )
    assert [p.messages[-1].content for p in prompts] == [
        "3 coins left.",
        "4 coins left.",
        "3 nuts left.",
        "4 nuts left.",
    ]
    assert prompts[0].metadata == {"item": "coins", "stones": 3}
    assert prompts[0].id == "item.coins-stones.3"


@pytest.mark.parametrize("seed", range(5))
def test_the_splits_cover_everything_and_never_meet(seed: int) -> None:
    train = load(split="train", held_out=7, split_seed=seed)
    held_out = load(split="held_out", held_out=7, split_seed=seed)
    everything = load(split="all")
    assert len(held_out) == 7
    assert overlapping(train, held_out) == []
    assert sorted(p.id for p in [*train, *held_out]) == sorted(p.id for p in everything)


def test_another_seed_holds_out_others() -> None:
    first, second = ({p.id for p in load(split="held_out", split_seed=seed)} for seed in (0, 1))
    assert first != second


def test_what_the_text_does_not_show_keeps_no_prompts_apart() -> None:
    settings: dict[str, Any] = {
        "template": "From 1 to {high}.",
        "starts": {"high": [10, 20, 30], "secret": {"low": 1, "high": 9}},
    }
    assert len(load(split="all", **settings)) == 3
    train = load(split="train", held_out=1, **settings)
    assert overlapping(train, load(split="held_out", held_out=1, **settings)) == []


def test_count_leaves_prompts_out_and_never_moves_one_to_the_other_split() -> None:
    few = load(split="train", count=5)
    assert len(few) == 5
    assert {p.id for p in few} <= {p.id for p in load(split="train")}


def test_messages_before_the_opening_are_given_as_they_are() -> None:
    before = [{"role": "system", "content": "Play."}, {"role": "user", "content": "{stones}?"}]
    prompt = load(before=before)[0]
    assert prompt.messages[0] == Message(role="system", content="Play.")
    assert prompt.messages[1].content == "{stones}?"


def test_values_that_make_no_safe_id_get_a_digest() -> None:
    prompts = load(
        split="all", template="{word}", starts={"word": ["a b", "\u00fc", "x" * 200, "plain"]}
    )
    assert [p.id.split("-")[0] for p in prompts] == ["episode", "episode", "episode", "word.plain"]
    assert len({p.id for p in prompts}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{heap} left"}, "template names {heap}, and starts has stones"),
        ({"template": "Play."}, "every prompt would read the same"),
        ({"starts": {"stones": []}}, "starts.stones has no value"),
        ({"held_out": 40}, "held_out must be between 1 and 39 of 40"),
        ({"held_out": 0}, "held_out must be between 1 and 39 of 40"),
        ({"starts": {"stones": {"low": 9, "high": 3}}}, "must not be above high"),
        ({"count": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_prompts_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PROMPT_SOURCES.parse({"type": "episodes", **settings})
