"""Kinds of examples: found by the name of their file, remembered by a marker, read back without their class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from policies.base.errors import ConfigurationError
from policies.base.seeds import derive_rng
from policies.examples.builder import PreferenceBuilder
from policies.examples.kind import Example, shipped_names
from policies.examples.kinds import PreferencePair, TokenSequence, UnpairedExample
from policies.examples.stored import StoredExample, read_examples, shipped
from policies.objectives.loss import PairLoss
from policies.storage.artifacts import (
    Marker,
    content_digest,
    marker_path,
    read_marker,
    write_json,
    write_records,
)
from tests.support.training_cases import demonstrations, pairs, sequence, singles
from workers.training.batches.plan import count_kept, unusable_because


class Listed(Example):
    """A kind that does not ship."""

    kind_name: ClassVar[str] = "listed"

    answers: tuple[TokenSequence, ...]
    spread: float
    note: str = ""


def listed(count: int = 3) -> list[Example]:
    rng = derive_rng("listed")
    return [
        Listed(
            id=f"l{i}",
            prompt_id=f"p{i}",
            answers=tuple(sequence(f"p{i}", k) for k in range(2 + i % 2)),
            spread=rng.random(),
        )
        for i in range(count)
    ]


def test_a_kind_that_ships_is_found_by_the_name_of_its_file() -> None:
    assert shipped_names() == {"pair", "unpaired", "supervised"}
    assert [shipped(name).kind_name for name in sorted(shipped_names())] == sorted(shipped_names())


@pytest.mark.parametrize("examples", [pairs(3), singles(4), demonstrations(3), listed()])
def test_examples_come_back_by_the_kind_in_their_marker(
    examples: list[Example], tmp_path: Path
) -> None:
    path, kind = tmp_path / "examples.parquet", type(examples[0])
    marker = write_records(path, kind, examples)
    assert marker.kind == kind.kind_name
    found = read_examples(path)
    assert content_digest(found) == marker.content_digest
    assert [e.sequences() for e in found] == [e.sequences() for e in examples]
    assert [e.row() for e in found] == [e.row() for e in examples]
    assert isinstance(found[0], StoredExample) == (kind is Listed)


@pytest.mark.parametrize("examples", [pairs(3), singles(4), demonstrations(3)])
def test_a_file_of_an_older_pawl_is_known_by_its_columns(
    examples: list[Example], tmp_path: Path
) -> None:
    path = tmp_path / "examples.parquet"
    write_records(path, type(examples[0]), examples)
    text = json.loads(marker_path(path).read_text(encoding="utf-8"))
    del text["kind"]
    older = Marker.model_validate({**text, "seal": ""}).sealed()
    write_json(marker_path(path), older.model_dump(mode="json"))
    assert "kind" not in json.loads(marker_path(path).read_text(encoding="utf-8"))
    assert read_marker(path) == older
    assert read_examples(path) == examples


def test_sequences_facts_and_numbers_of_a_kind_follow_from_its_fields() -> None:
    (example, *_) = listed()
    assert list(example.sides()) == ["answers_1", "answers_2"]
    assert list(example.row()) == ["spread", "note"]
    assert Listed.number_names() == ("spread",)
    assert count_kept(listed()) == {"train/examples": 3.0}
    every = example.with_sequences(lambda s: s.model_copy(update={"policy_version": 9}))
    assert [s.policy_version for s in every.sequences()] == [9, 9]


def test_a_list_of_answers_to_different_prompts_cannot_be_learned_from() -> None:
    mixed = Listed(
        id="l", prompt_id="p", answers=(sequence("p", 0), sequence("other", 0)), spread=1.0
    )
    assert unusable_because(mixed, 100) == "prompt_differs"
    assert unusable_because(listed()[0], 100) is None
    assert unusable_because(listed()[0], 3) == "too_long"


@pytest.mark.parametrize("base", [Example, PreferencePair])
def test_a_kind_takes_no_name_of_one_that_ships(base: type[Example]) -> None:
    body = {"__module__": __name__, "__annotations__": {"kind_name": ClassVar[str]}}
    with pytest.raises(ConfigurationError, match="a name of its own"):
        type("Mine", (base,), {**body, "kind_name": "pair"})


def test_fields_that_nobody_could_read_back_are_refused() -> None:
    body: dict[str, Any] = {
        "__module__": __name__,
        "__annotations__": {"kind_name": ClassVar[str], "extra": dict[str, Any]},
        "kind_name": "loose",
    }
    with pytest.raises(ConfigurationError, match="extra"):
        type("Loose", (Example,), body)


def test_builders_and_losses_may_name_a_kind_that_ships_by_its_name_and_no_other() -> None:
    builder = type("Old", (PreferenceBuilder,), {"kind": "unpaired", "__module__": __name__})
    assert builder.kind is UnpairedExample  # type: ignore[attr-defined]
    assert builder.kind_name == "unpaired"  # type: ignore[attr-defined]
    assert PairLoss.kind_name == "pair"
    with pytest.raises(ConfigurationError, match="Other"):
        type("Other", (PreferenceBuilder,), {"kind": "pairs", "__module__": __name__})
