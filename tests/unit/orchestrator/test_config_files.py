"""Reading configs: strict YAML, overrides, files and variables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orchestrator
from orchestrator.config.files import find_config, load_config, resolve_tracking, shipped_configs
from orchestrator.config.strict_yaml import parse_yaml
from policies.base.errors import ConfigurationError

SMALL = """\
policy: {model: smollm2-135m-instruct}
prompts:
  train: {type: arithmetic, split: train}
  held_out: {type: arithmetic, split: held_out}
rollout: {engine: vllm}
verifiers: [{type: numeric_match}]
preferences: {type: right_vs_wrong}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def refusal(name: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_config(str(name), overrides)
    return str(caught.value)


def test_a_short_config_is_enough(small: Path) -> None:
    loaded = load_config(str(small))
    assert loaded.config.rollout.samples_per_prompt == 8
    assert loaded.raw["rollout"] == {"engine": "vllm"}
    assert loaded.source == SMALL


def test_overrides_reach_lists_sections_and_bare_component_names(small: Path) -> None:
    loaded = load_config(
        str(small),
        [
            "rounds=3",
            "training.loss.beta=0.2",
            "training.learning_rate=1e-5",
            "rollout.engine.max_num_seqs=7",
            "verifiers.0.type=exact_match",
            "verifiers.1={type: numeric_match}",
            "training.loss.type=ipo",
            "rollout.stop=[a, b]",
        ],
    )
    config = loaded.config
    assert (config.rounds, config.training.learning_rate) == (3, 1e-5)
    assert (config.training.loss.type, config.training.loss.model_dump()["beta"]) == ("ipo", 0.2)
    assert config.rollout.engine.model_dump()["max_num_seqs"] == 7
    assert [v.type for v in config.verifiers] == ["exact_match", "numeric_match"]
    assert config.rollout.stop == ("a", "b")
    assert "# override: rounds=3" in loaded.source


def test_a_whole_list_can_be_overridden(small: Path) -> None:
    config = load_config(str(small), ["verifiers=[{type: exact_match}]"]).config
    assert [v.type for v in config.verifiers] == ["exact_match"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rounds", "not key=value"),
        ("=3", "not key=value"),
        ("a..b=3", "not key=value"),
        ("verifiers.7.type=x", "not an index of a list of 1"),
        ("verifiers.first.type=x", "not an index"),
        ("rounds=2=3", "whole number"),
        ("training.loss.betta=0.2", "did you mean 'beta'?"),
        ("rollout.nothing=1", "unknown key"),
        ("rounds=[1", "not YAML"),
    ],
)
def test_a_wrong_override_is_refused_by_name(small: Path, override: str, expected: str) -> None:
    assert expected in refusal(small, override)


def test_the_error_of_an_override_names_the_override(small: Path) -> None:
    assert "Set on the command line by rounds=" in refusal(small, "rounds=-1")


def test_files_in_a_config_are_taken_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(prompt, completion, answer):\n    return 1.0\n")
    path = tmp_path / "c.yaml"
    text = SMALL.replace("{type: numeric_match}", "{type: './mine.py:score'}")
    text = text.replace("{type: arithmetic, split: train}", "{type: jsonl, path: ../data.jsonl}")
    path.write_text(text.replace("smollm2-135m-instruct", "./model"))
    config = load_config(str(path)).config
    assert config.verifiers[0].model_dump()["function"] == f"{tmp_path}/mine.py:score"
    assert config.prompts.train.model_dump()["path"] == str(tmp_path.parent / "data.jsonl")
    assert config.policy.model == str(tmp_path / "model")


def test_files_in_an_override_are_taken_from_the_current_folder(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.py").write_text("def score(prompt, completion, answer):\n    return 1.0\n")
    monkeypatch.chdir(here)
    config = load_config(str(small), ["verifiers=[./mine.py:score]"]).config
    assert config.verifiers[0].model_dump()["function"] == f"{here}/mine.py:score"


def test_other_strings_that_begin_with_a_dot_stay_as_they_are(small: Path) -> None:
    assert load_config(str(small), ["rollout.stop=[./, ../x]"]).config.rollout.stop == (
        "./",
        "../x",
    )


def test_variables_are_filled_in_and_an_unset_one_is_named(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAWL_TEST_NAME", "from-env")
    monkeypatch.delenv("PAWL_TEST_MISSING", raising=False)
    given_name = ["tracking.experiment=${PAWL_TEST_NAME}-$${x}"]
    loaded = load_config(str(small), given_name)
    assert loaded.config.tracking.experiment == "from-env-${x}"
    assert loaded.raw["tracking"]["experiment"] == "${PAWL_TEST_NAME}-$${x}"
    message = refusal(small, "tracking.experiment=${PAWL_TEST_MISSING}")
    assert message.startswith(
        "tracking.experiment: environment variable PAWL_TEST_MISSING is not set"
    )


def test_a_relative_sqlite_store_is_anchored_where_the_run_is_launched(small: Path) -> None:
    config = resolve_tracking(load_config(str(small)).config, Path("/somewhere"))
    assert config.tracking.uri == "sqlite:////somewhere/mlflow.db"
    assert resolve_tracking(config, Path("/else")).tracking.uri == "sqlite:////somewhere/mlflow.db"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "holds a list"),
        (b"a: 1\n\tb: 2\n", "bad.yaml:2:1: a tab is used for indentation"),
        (b"a: [1, 2\nb: 3\n", "bad.yaml:2:2: not YAML"),
        (b"rounds: 1\nseed: 0\nrounds: 2\n", "'rounds' is given twice (lines 1 and 3)"),
        (b"a: {b: 1, b: 2}\n", "'b' is given twice (lines 1 and 1)"),
        (
            b"a: !!python/object/apply:os.system [x]\n",
            "tag !!python/object/apply:os.system is not allowed",
        ),
        (b"a: !!binary aGk=\n", "tag !!binary is not allowed"),
        (b"a: &x [*x]\n", "too deep"),
        (b"a: " + b"[" * 3000, "too deep"),
        (b"? [a]\n: 1\n", "a key must be a plain word"),
        (b"x" * (1 << 20) + b"y", "too large"),
        (b"a: \xff\n", "not UTF-8 (byte 3)"),
        (b"a: \x00\n", "#x0000 is not allowed"),
        (b"a: 1\n---\nb: 2\n", "expected a single document"),
        (b"seed: " + b"9" * 5000 + b"\n", "not a number that can be read"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_the_place(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert expected in refusal(path)


def test_an_alias_bomb_is_refused_without_being_built(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    assert "too large (aliases" in refusal(path)


def test_missing_files_directories_and_unknown_names_are_refused(tmp_path: Path) -> None:
    assert "it is a directory" in refusal(tmp_path)
    message = refusal("quickstrat")
    assert "did you mean 'quickstart'?" in message
    assert "judge-dpo" in message
    assert "no such file" in refusal(tmp_path / "nothing.yaml")
    assert "is not a file name" in refusal("\0")


def test_a_shipped_config_is_found_by_its_name() -> None:
    assert find_config("quickstart") == shipped_configs()["quickstart"]


def test_an_installed_pawl_finds_its_configs_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shipped_configs" / "recipes").mkdir(parents=True)
    for name in ("quickstart", "recipes/one"):
        (tmp_path / "shipped_configs" / f"{name}.yaml").write_text(SMALL)
    monkeypatch.setattr("orchestrator.config.files._SOURCE_CONFIGS", tmp_path / "nothing")
    monkeypatch.setattr(orchestrator, "__path__", [*orchestrator.__path__, str(tmp_path)])
    assert list(shipped_configs()) == ["quickstart", "recipes/one"]
    monkeypatch.delitem(sys.modules, "orchestrator.shipped_configs")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5E3", 5000.0),
        ("-.5", -0.5),
        ("0x10", 16),
        ("0o17", 15),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("12:30:45", "12:30:45"),
        ("'1e-5'", "1e-5"),
        (".inf", float("inf")),
        ("=", "="),
    ],
)
def test_scalars_are_read_as_yaml_1_2_has_them(text: str, value: object) -> None:
    read = parse_yaml(f"x: {text}", name="t").value["x"]
    assert (read, type(read)) == (value, type(value))


def test_merge_keys_do_not_override_what_is_written_out() -> None:
    text = "base: &b {x: 1, y: 2}\nuse: {<<: *b, y: 3}\n"
    assert parse_yaml(text, name="t").value["use"] == {"x": 1, "y": 3}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives(value: float) -> None:
    assert float(parse_yaml(f"x: {value!r}", name="t").value["x"]) == value


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_yaml(text, name="t")
    except ConfigurationError as refused:
        message = str(refused)
    else:
        message = "t: fine"
    assert message.startswith("t:")
