"""Every problem of a config is named: with its path, its line, a near name and a remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.config.errors import show_value
from orchestrator.config.files import load_config
from policies.base.errors import ConfigurationError

BASE = """\
rounds: 2
policy: {model: smollm2-135m-instruct}
prompts:
  train: {type: arithmetic, split: train}
  held_out: {type: arithmetic, split: held_out}
verifiers: [{type: numeric_match}]
preferences: {type: right_vs_wrong}
"""


def problems(
    tmp_path: Path, more: str = "", *, base: str = BASE, overrides: list[str] | None = None
) -> list[str]:
    path = tmp_path / "c.yaml"
    path.write_text(base + more, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_config(str(path), overrides or [])
    return str(caught.value).splitlines()


def test_a_mistyped_key_of_a_component_is_named_with_path_line_and_near_name(
    tmp_path: Path,
) -> None:
    more = "training:\n  loss:\n    type: dpo\n    betta: 0.2\n"
    assert problems(tmp_path, more) == [
        "training.loss.betta: unknown key; did you mean 'beta'? (got 0.2) Set in c.yaml:11. Fix: rename it"
    ]


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    more = "training: {learning_rat: 1e-5, batch_size: 0, loss: {type: dpoo}}\nrolout: {}\nrollout: {top_p: 1.2}\n"
    found = problems(tmp_path, more)
    assert [line.split(":")[0] for line in found] == [
        "rollout.top_p",
        "training.batch_size",
        "training.loss",
        "training.learning_rat",
        "rolout",
    ]


def test_a_problem_deep_inside_a_judge_has_its_full_path(tmp_path: Path) -> None:
    more = "judges:\n- type: pairwise\n  backend:\n    type: engine\n    engine: {type: vllm, max_num_seq: 3}\n"
    (line,) = problems(tmp_path, more)
    assert line.startswith(
        "judges.0.backend.engine.max_num_seq: unknown key; did you mean 'max_num_seqs'?"
    )
    assert "Set in c.yaml:12" in line


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("training: {learning_rate: 0}", "training.learning_rate: must be greater than 0 (got 0)"),
        ("training: {learning_rate: -1}", "must be greater than 0 (got -1)"),
        (
            "training: {learning_rate: .nan}",
            "training.learning_rate: must be a finite number (got nan)",
        ),
        ("training: {learning_rate: .inf}", "must be a finite number (got inf)"),
        (
            "training: {learning_rate: true}",
            "training.learning_rate: must be a number, not true or false (got true)",
        ),
        (
            "training: {learning_rate: small}",
            "training.learning_rate: must be a number (got 'small')",
        ),
        (
            "training: {loss: {type: dpo, beta: true}}",
            "training.loss.beta: must be a number, not true or false",
        ),
        (
            "training: {micro_batch_size: false}",
            "training.micro_batch_size: must be a number, not true or false",
        ),
        ("verify: {resources: {num_cpus: true}}", "verify.resources.num_cpus: must be a number"),
        ("seed: 1.5", "seed: must be a whole number (got 1.5)"),
        ("seed: three", "seed: must be a whole number (got 'three')"),
        ("seed: -1", "seed: must be greater than or equal to 0"),
        ("seed: ~", "seed: must be a whole number (got None)"),
        (
            "rollout: {max_tokens: 0}",
            "rollout.max_tokens: must be greater than or equal to 1 (got 0)",
        ),
        ("rollout: {top_p: 0}", "rollout.top_p: must be greater than 0 (got 0)"),
        ("rollout: []", "rollout: must be a section of `key: value` lines (got [])"),
        ("judges: {}", "judges: must be a list"),
        ("rollout: {stop: x}", "rollout.stop: must be a list (got 'x')"),
        ("acceptance: {type: alway}", "unknown acceptance rule 'alway'; did you mean 'always'?"),
        (
            "rollout: {engine: {max_num_seqs: 3}}",
            "rollout.engine: a rollout engine is written {type: NAME, ...}",
        ),
        ("lr: 3", "lr: unknown key; did you mean 'training.learning_rate'"),
        ("temperature: 3", "temperature: unknown key; did you mean 'rollout.temperature'?"),
        ("training: {lr: 3}", "training.lr: unknown key; did you mean 'learning_rate'?"),
        ("tracking: {uri: 'ftp://x'}", "tracking.uri: "),
        ("policy2: {}", "policy2: unknown key; did you mean 'policy'?"),
    ],
)
def test_each_kind_of_mistake_is_said_in_plain_words(
    tmp_path: Path, more: str, expected: str
) -> None:
    (line,) = problems(tmp_path, more + "\n")
    assert line.startswith(expected) or expected in line
    assert "Set in c.yaml:8" in line
    assert "Fix: " in line


def test_a_number_out_of_range_names_its_line(tmp_path: Path) -> None:
    for value in ("0", "-1", "1" + "0" * 30):
        (line,) = problems(tmp_path, base=BASE.replace("rounds: 2", f"rounds: {value}"))
        assert line.startswith("rounds: must be ")
        assert "Set in c.yaml:1" in line


@pytest.mark.parametrize(
    "setting", ["training.learning_rate=1e308", "training.batch_size=0", "rounds=-1"]
)
def test_the_bound_that_a_number_broke_is_named_as_the_remedy_and_is_taken(setting: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config("fake-smoke", [setting])
    found = re.search(r"Fix: give a value of at (?:most|least) ([\d.]+)$", str(caught.value))
    assert found is not None, caught.value
    load_config("fake-smoke", [f"{setting.partition('=')[0]}={found[1]}"])  # pasted


def test_what_is_missing_is_explained(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, base=BASE.replace("policy: {model: smollm2-135m-instruct}\n", ""))
    assert line == "policy: missing. Fix: add the key 'policy' (The model that is improved.)"


def test_sections_that_contradict_each_other_are_each_named_with_a_way_out(tmp_path: Path) -> None:
    more = "training: {loss: {type: kto}}\nrollout: {samples_per_prompt: 1}\n"
    found = problems(tmp_path, more)
    assert len(found) == 2
    assert found[0].startswith("training.loss 'kto' learns from unpaired examples")
    assert "Set in c.yaml:8" in found[0]
    assert found[1].startswith("rollout.samples_per_prompt is 1")
    assert all("Fix: " in line for line in found)


def test_nothing_that_looks_like_a_secret_is_echoed(tmp_path: Path) -> None:
    backend = "{type: openai, base_url: 'http://127.0.0.1:1/v1', model: m, api_key: sk-VERYSECRET}"
    judge = f"judges: [{{type: pairwise, backend: {backend}}}]\n"
    text = "\n".join(problems(tmp_path, judge))
    assert "api_key" in text
    assert "VERYSECRET" not in text
    text = "\n".join(problems(tmp_path, "tracking: {uri: 'https://ann:hunter2@host/x'}\n"))
    assert text.startswith("tracking.uri: holds a password")
    assert "hunter2" not in text
    text = "\n".join(problems(tmp_path, "password: hunter2\n"))
    assert "hunter2" not in text
    text = "\n".join(problems(tmp_path, overrides=["tracking.token=hunter2"]))
    assert "hunter2" not in text


def test_a_long_value_is_cut() -> None:
    assert len(show_value(("rollout", "stop"), "x" * 1000)) <= 80


def test_a_broken_file_of_the_users_is_reported_not_propagated(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('at import')\n")
    (line,) = problems(tmp_path, base=BASE.replace("numeric_match", "'./broken.py:score'"))
    assert line.startswith("verifiers.0: cannot import")
    assert "RuntimeError: at import" in line
