"""Components: found by name, by reference, by file; everything wrong with them is named."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.config.families import FAMILIES
from policies.base.component import Component, ComponentConfigError, Family, create
from policies.base.errors import ConfigurationError
from workers.verify.verifier import VERIFIERS, Verifier


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_every_member_of_every_family_is_a_documented_component(family: Family[Component]) -> None:
    assert family.members()
    for name in family.members():
        owner = family.resolve(name)
        assert issubclass(owner, family.base)
        assert owner.Config.component is owner
        assert owner.__doc__
        for field, info in owner.Config.model_fields.items():
            assert info.description, f"{family.name} {name}: {field} has no docstring"


def test_an_unknown_name_lists_the_known_ones_and_the_likeliest() -> None:
    with pytest.raises(
        ConfigurationError, match=r"did you mean 'numeric_match'\?.*Known: .*exact_match"
    ):
        VERIFIERS.parse("numeric_macth")


def test_an_unknown_key_is_refused_and_the_owner_is_known() -> None:
    with pytest.raises(ComponentConfigError) as caught:
        VERIFIERS.parse({"type": "numeric_match", "tolerence": 1})
    assert caught.value.owner is VERIFIERS.resolve("numeric_match")
    assert caught.value.error.errors()[0]["loc"] == ("tolerence",)


@pytest.mark.parametrize("value", [3, [], {"name": "x"}, {"type": 3}, None])
def test_a_component_without_a_type_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="written"):
        VERIFIERS.parse(value)


def test_settings_survive_json_and_pickle_and_build_the_same_component() -> None:
    config = VERIFIERS.parse({"type": "numeric_match", "weight": 2.0})
    again = VERIFIERS.parse(config.model_dump(mode="json"))
    assert again == config == pickle.loads(pickle.dumps(config))
    assert isinstance(create(again), Verifier)


def test_settings_are_frozen() -> None:
    config = VERIFIERS.parse("numeric_match")
    with pytest.raises(ValidationError):
        config.type = "other"  # type: ignore[misc]


def test_a_class_in_a_file_is_a_component(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from workers.verify.verifier import Verifier\n"
        "class Mine(Verifier):\n"
        "    '''Mine.'''\n"
        "    def verify(self, prompt, trajectory):\n"
        "        return self.scored(trajectory, 1.0)\n",
        encoding="utf-8",
    )
    config = VERIFIERS.parse({"type": f"{file}:Mine"})
    assert type(create(config)).__name__ == "Mine"


def test_a_function_in_a_file_becomes_the_callable_verifier(tmp_path: Path) -> None:
    file = tmp_path / "scores.py"
    file.write_text("def score(prompt, completion, answer):\n    return 1.0\n", encoding="utf-8")
    assert VERIFIERS.parse({"type": f"{file}:score"}).type == "callable"


@pytest.mark.parametrize(
    ("content", "message"),
    [("raise RuntimeError('at import')", "RuntimeError: at import"), ("x = 1", "has no 'score'")],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        VERIFIERS.parse({"type": f"{file}:score"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        VERIFIERS.parse({"type": f"{tmp_path}/none.py:score"})
