"""Settings of the endpoint backend: no key in them, no key without TLS, and what names the endpoint."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import pytest

from policies.base.component import create
from policies.base.records import PolicyVersion
from workers.judge.chat_completion import retry_after_seconds
from workers.judge.judge import BACKENDS, JUDGES, BackendContext, JudgeBackend

KEY = "sk-CANARY-0123456789"


def no_version(name: object) -> PolicyVersion:
    raise LookupError(name)


def backend(url: str, **settings: Any) -> JudgeBackend:
    config = BACKENDS.parse({"type": "openai", "base_url": url, "model": "m", **settings})
    context = BackendContext(policy_version=no_version, model_version=no_version)
    built: JudgeBackend = create(config, context=context)
    return built


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": KEY},
        {"headers": {"Authorization": KEY}},
        {"api_key_env": KEY},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
        {"apikey": KEY},
        {"base_url": f"ftp://{KEY}"},
        {"base_url": f"http://[{KEY}"},
    ],
)
def test_a_key_in_the_config_is_refused_without_showing_it(settings: dict[str, Any]) -> None:
    section = {"type": "openai", "base_url": "https://host/v1", "model": "m", **settings}
    for value in (section, {"type": "pairwise", "backend": section}):
        family = JUDGES if value["type"] == "pairwise" else BACKENDS
        with pytest.raises(ValueError, match="Config") as refused:
            family.parse(value)
        assert "canary" not in str(refused.value).lower()


@pytest.mark.parametrize(
    ("url", "settings", "allowed"),
    [
        ("http://judge.example/v1", {"api_key_env": "K"}, False),
        ("http://10.0.0.5:8000/v1", {"api_key_env": "K"}, False),
        ("http://127.0.0.1.evil.example/v1", {"api_key_env": "K"}, False),
        ("http://judge.example/v1", {"api_key_env": "K", "allow_http": True}, True),
        ("https://judge.example/v1", {"api_key_env": "K"}, True),
        ("http://judge.example/v1", {}, True),
        ("http://127.0.0.1:8000/v1", {"api_key_env": "K"}, True),
        ("http://[::1]:8000/v1", {"api_key_env": "K"}, True),
        ("http://localhost:8000/v1", {"api_key_env": "K"}, True),
    ],
)
def test_a_key_leaves_this_machine_over_tls_only(
    url: str, settings: dict[str, Any], allowed: bool
) -> None:
    if allowed:
        assert url.rstrip("/") in backend(url, **settings).identity()
    else:
        with pytest.raises(ValueError, match="without TLS"):
            backend(url, **settings)


def test_what_answers_is_named_with_what_changes_its_answers() -> None:
    plain = backend("https://h/v1/").identity()
    assert plain == "openai: m at https://h/v1"
    assert backend("https://h/v1", extra_body={"top_p": 0.5}).identity() != plain


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert retry_after_seconds("2") == 2.0
    assert retry_after_seconds("-5") == 0.0
    assert retry_after_seconds(None) is None
    for odd in ("nan", "inf", "soon", ""):
        assert retry_after_seconds(odd) is None
    seconds = retry_after_seconds(formatdate(time.time() + 30, usegmt=True))
    assert seconds is not None
    assert 27 < seconds <= 30
