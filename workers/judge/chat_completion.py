"""Reads what an OpenAI-compatible endpoint said: the answer, its tokens, and what a refusal means."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policies.base.errors import explain
from workers.judge.judge import CUT, Unavailable
from workers.judge.parse import cleaned


@dataclass(frozen=True)
class Attempt:
    """The end of one request."""

    text: str | None = None
    error: str = ""
    can_retry: bool = False
    wait_seconds: float | None = None
    """What the server asked for."""
    status: int | None = None
    """HTTP status; None where there was no answer."""
    is_completion: bool = False
    """Whether the answer has the form of a chat completion, with or without a text."""
    tokens: tuple[int, int] | None = None
    """Tokens of prompt and completion, as the server counted them; None where it did not say."""


def read_completion(content: bytes) -> Attempt:
    """The text of a chat completion; what has none is an error that repeating would not mend."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        message = choice["message"]
        refusal, text = message.get("refusal"), message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        shown = cleaned(content.decode("utf-8", "replace"), 300)
        return Attempt(error=f"the response is not a chat completion: {shown}", status=200)
    error = ""
    if refusal:
        text, error = None, f"the model refused: {str(refusal)[:300]}"
    elif not isinstance(text, str) or not text.strip():
        text, error = None, f"the answer is empty (finish_reason {choice.get('finish_reason')!r})"
    elif choice.get("finish_reason") == "length":
        text, error = None, CUT
    return Attempt(
        text=text, error=error, status=200, is_completion=True, tokens=_tokens(body.get("usage"))
    )


def _tokens(usage: Any) -> tuple[int, int] | None:
    if not isinstance(usage, dict):
        return None
    found = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    counts = [n for n in found if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    return (counts[0], counts[1]) if len(counts) == 2 else None


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date; None when there is no readable one."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def model_names(content: bytes) -> list[str] | None:
    """Names in the answer to `GET /models`; None where it is no such list."""
    try:
        names = [entry["id"] for entry in json.loads(content)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return [cleaned(name, 120) for name in names if isinstance(name, str)]


def other_addresses(base_url: str) -> list[str]:
    """Return what may have been meant by an address at which no endpoint answers, the likeliest first."""
    base = base_url.rstrip("/")
    for ending in ("/chat/completions", "/completions", "/models"):
        base = base.removesuffix(ending)
    root = base.partition("://")
    host = f"{root[0]}://{root[2].partition('/')[0]}"
    found = [base, f"{base}/v1", f"{host}/v1", host]
    return [url for url in dict.fromkeys(found) if url != base_url.rstrip("/")]


@dataclass(frozen=True)
class Endpoint:
    """The endpoint that was asked, for messages."""

    base_url: str
    model: str
    api_key_env: str | None

    def unavailable(
        self, attempt: Attempt, served: Sequence[str] | None, meant: str | None
    ) -> Unavailable | None:
        """Tell why a trial question was not answered, in four parts; None when it was.

        Args:
            attempt: how the question ended.
            served: the models that the server names; None where it does not say.
            meant: an address at which an endpoint does answer.
        """
        status = attempt.status
        if status == 200 and attempt.is_completion:
            return None
        if status is None:
            what = f"the judge server cannot be reached ({attempt.error})"
            return self._refused(what, "start it, or correct base_url", "base_url", self.base_url)
        if status in (401, 403):
            fix = "give api_key_env: NAME and export NAME with a key that the server takes"
            if self.api_key_env:
                fix = f"export {self.api_key_env} with a key that the server takes"
            what = f"the judge server refuses the key ({attempt.error})"
            return self._refused(what, fix, "api_key_env", self.api_key_env)
        if status == 429 or status >= 500:
            what = f"the judge server does not answer questions now ({attempt.error})"
            fix = "look at the server; wait until it is ready"
            return self._refused(what, fix, "base_url", self.base_url, may_pass=True)
        if served and self.model not in served:
            what = f"the judge server has no such model ({attempt.error})"
            fix = f"set model to {' or '.join(served[:5])}"
            return self._refused(what, fix, "model", self.model)
        if meant is not None:
            what = f"no chat endpoint answers at this address ({attempt.error})"
            return self._refused(what, f"base_url: {meant}", "base_url", self.base_url)
        if status in (200, 404, 405) and not served:
            what = f"no chat endpoint answers at this address ({attempt.error})"
            fix = "write the address up to and with the version, e.g. http://127.0.0.1:8000/v1"
            return self._refused(what, fix, "base_url", self.base_url)
        what = f"the judge server refuses the question ({attempt.error})"
        fix = "change what it names: model, or a field of the request with extra_body, where null removes one"
        return self._refused(what, fix, "extra_body", self.model)

    def _refused(
        self, what: str, fix: str, setting: str, value: object, *, may_pass: bool = False
    ) -> Unavailable:
        where = f"backend.{setting} of a judge"
        return Unavailable(explain(what, value=value, where=where, fix=fix), may_pass=may_pass)
