"""What goes to the tracking server has names and values that it accepts, and no passwords."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from orchestrator.config.tracking_uri import absolute_uri, artifact_root, check_uri, redact
from orchestrator.tracking.metric_names import (
    MAX_NAME,
    MAX_PARAM,
    clean_metrics,
    clean_name,
    flatten_params,
)
from policies.base.errors import ConfigurationError
from policies.base.plain_text import clean_text

ACCEPTED = re.compile(r"[A-Za-z0-9_./ :-]+")
ODD_NAMES = [
    "verify/größe/score",
    "a" * 400,
    "../up",
    "/root",
    "a//b",
    ".",
    "",
    "x/",
    "kl\n",
    "50%",
    "评分",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_metric_name_becomes_one_that_mlflow_accepts(name: str) -> None:
    clean = clean_name(name)
    assert ACCEPTED.fullmatch(clean)
    assert len(clean) <= MAX_NAME
    assert not clean.startswith(("/", ".."))
    assert "//" not in clean


def test_different_names_stay_different() -> None:
    names = [
        *ODD_NAMES,
        "verify/gr_e/score",
        "a" * 401,
        "eval/pass@1",
        "eval/pass@10",
        "up",
        "root",
    ]
    assert len({clean_name(name) for name in names}) == len(names)


def test_ordinary_names_are_left_alone_and_at_is_spelled_out() -> None:
    assert clean_name("rewards/chosen") == "rewards/chosen"
    assert clean_name("eval/pass@1") == "eval/pass_at_1"


def test_values_that_are_no_finite_numbers_are_named_and_left_out() -> None:
    kept, dropped = clean_metrics(
        {"a": 1, "b": math.nan, "c": math.inf, "d": -math.inf, "e": None, "f": "x"}
    )
    assert kept == {"a": 1.0}
    assert dropped == ["b", "c", "d", "e", "f"]


def test_a_config_becomes_flat_parameters() -> None:
    flat = flatten_params(
        {
            "rounds": 4,
            "training": {"loss": {"type": "dpo", "beta": 0.1}},
            "verifiers": [{"type": "exact"}, {"type": "regex", "pattern": "a|b"}],
            "rollout": {"stop": ["\n", "User:"]},
            "policy": {"adapter": None},
            "judges": [],
            "empty": {},
        }
    )
    assert flat == {
        "rounds": "4",
        "training.loss.type": "dpo",
        "training.loss.beta": "0.1",
        "verifiers.0.type": "exact",
        "verifiers.1.type": "regex",
        "verifiers.1.pattern": "a|b",
        "rollout.stop": '["\\n", "User:"]',
        "policy.adapter": "null",
        "judges": "[]",
        "empty": "{}",
    }


def test_long_parameters_are_cut_and_still_told_apart() -> None:
    flat = flatten_params({"a": "x" * 9000, "b": "x" * 9001})
    assert [len(v) for v in flat.values()] == [MAX_PARAM, MAX_PARAM]
    assert flat["a"] != flat["b"]


def test_control_and_direction_characters_are_stripped_from_texts() -> None:
    assert clean_text("a\x1b[31mb\x00c\u202ed\ud800\n\te") == "a[31mbcd\n\te"


@pytest.mark.parametrize(
    "text",
    [
        "no answer from https://ann:s3cr3t@host:5000/api",
        "user ann with s3cr3t",
        "postgresql://ann:s3cr3t@db/mlflow refused",
    ],
)
def test_the_password_of_the_address_is_removed_from_messages(text: str) -> None:
    assert "s3cr3t" not in redact(text, "https://ann:s3cr3t@host:5000")


def test_an_encoded_password_is_removed_in_both_spellings() -> None:
    uri = "https://ann:p%40ss%2Fw@host"
    assert redact("p@ss/w or p%40ss%2Fw", uri) == "*** or ***"


def test_a_password_in_the_config_does_not_become_a_parameter() -> None:
    flat = flatten_params({"tracking": {"uri": "https://ann:s3cr3t@host"}})
    assert flat == {"tracking.uri": "https://***@host"}


@pytest.mark.parametrize(
    "uri",
    [
        "./mlruns",
        "file:///tmp/x",
        "sqlite://",
        "sqlite:///:memory:",
        "http://",
        "http://h:99999",
        "ftp://h",
        "",
        "http://[::1",
    ],
)
def test_an_address_that_cannot_take_metrics_is_refused_with_the_remedy(uri: str) -> None:
    with pytest.raises(ConfigurationError, match=r"tracking\.uri.*Fix: use sqlite"):
        check_uri(uri)


def test_a_refused_address_is_shown_without_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_uri("ftp://ann:s3cr3t@host")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "sqlite:////a/b.db",
        "http://127.0.0.1:5000",
        "https://h/x",
        "postgresql+psycopg2://u:p@h/d",
    ],
)
def test_usable_addresses_are_accepted(uri: str) -> None:
    assert check_uri(uri) == uri


def test_a_relative_database_is_taken_from_the_folder_of_the_launch(tmp_path: Path) -> None:
    assert absolute_uri("sqlite:///db/m.db", tmp_path) == f"sqlite:///{tmp_path}/db/m.db"
    assert absolute_uri("sqlite:////a/m.db", tmp_path) == "sqlite:////a/m.db"
    assert absolute_uri("http://h:1", tmp_path) == "http://h:1"


def test_files_lie_beside_the_database_and_a_server_decides_for_itself(tmp_path: Path) -> None:
    assert artifact_root(f"sqlite:///{tmp_path}/m.db") == (tmp_path / "mlartifacts").as_uri()
    assert artifact_root("http://h:1") is None
