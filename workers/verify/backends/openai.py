"""Any OpenAI-compatible endpoint as the judge: the only module that imports httpx, when it is asked.

The key is read from the environment for each batch of questions and is in nothing that this module
returns, logs or raises. Every wait is bounded: by request, by retry, and by failures in a row.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import ipaddress
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from policies.component import Component
from policies.errors import ConfigurationError, JudgeError, PawlError, boundary, explain
from policies.records import Json
from workers.alive import beat
from workers.verify.judge import CUT, BackendContext, JudgeBackend, Question, Reply
from workers.verify.judge_parse import cleaned

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 8 * 2**20
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_FIELDS = frozenset({"api_key", "key", "token", "authorization", "headers", "password"})


class OpenAIBackend(JudgeBackend):
    """Asks `POST <base_url>/chat/completions`."""

    class Config(Component.Config):
        """Settings of the endpoint. Limits hold for each judge worker by itself."""

        # A key may have been pasted in the wrong place: messages never show what was written.
        model_config = ConfigDict(hide_input_in_errors=True)

        base_url: str
        """Address up to and with the version, e.g. `http://127.0.0.1:8000/v1`."""
        model: str = Field(min_length=1)
        """Name of the model at the endpoint."""
        api_key_env: str | None = None
        """Name of the environment variable that holds the key; null sends none. Never the key itself."""
        timeout_seconds: float = Field(default=60.0, gt=0)
        """Longest time for one request, from connecting to the last byte."""
        max_retries: int = Field(default=4, ge=0, le=20)
        """Repeats of a request after 429, 5xx, a timeout or a lost connection."""
        retry_seconds: float = Field(default=1.0, ge=0)
        """Wait before the first repeat; it doubles each time, less a random part."""
        max_wait_seconds: float = Field(default=60.0, gt=0)
        """Longest wait before a repeat. A server that asks for more (Retry-After) gets no repeat."""
        give_up_after: int = Field(default=16, ge=1)
        """Questions in a row that may fail after all repeats; the rest of the batch is then not asked."""
        max_concurrency: int = Field(default=8, ge=1)
        """Questions under way at once, those that wait for a repeat included."""
        requests_per_minute: float | None = Field(default=None, gt=0)
        """Requests begun per minute, evenly spaced; null sets no limit."""
        allow_http: bool = False
        """Send the key without TLS to a host that is not this machine. Off: such a config is refused."""
        extra_body: dict[str, Json] = Field(default_factory=dict)
        """More fields of the request, e.g. `{reasoning_effort: low}`; null removes one of ours. No secrets."""

        @model_validator(mode="before")
        @classmethod
        def _no_keys(cls, data: Any) -> Any:
            written = sorted(_SECRET_FIELDS & set(data)) if isinstance(data, dict) else []
            if written:
                what = "keys are never written in a config"
                fix = "put the key into the environment and give the variable's name as api_key_env"
                raise ConfigurationError(
                    explain(what, value=written, where="backend of a judge", fix=fix)
                )
            return data

        @model_validator(mode="after")
        def _safe_address(self) -> Self:
            if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
                what = "api_key_env must be the name of an environment variable"
                fix = "for example OPENAI_API_KEY; if this was the key itself, treat it as leaked"
                where = "backend.api_key_env of a judge"
                raise ConfigurationError(explain(what, value="(hidden)", where=where, fix=fix))
            problem, shown = _address_problem(self.base_url), "(hidden)"
            if (
                problem is None
                and self.api_key_env
                and not self.allow_http
                and not self._is_private()
            ):
                problem = "the key would travel without TLS: use https, or set allow_http: true"
                shown = f"http://{urlsplit(self.base_url).hostname}"
            if problem is not None:
                what = "base_url cannot be used"
                where = "backend.base_url of a judge"
                raise ConfigurationError(explain(what, value=shown, where=where, fix=problem))
            return self

        def _is_private(self) -> bool:
            return urlsplit(self.base_url).scheme == "https" or is_loopback(self.base_url)

    def __init__(self, config: Component.Config, *, context: BackendContext) -> None:
        self.config = cast(OpenAIBackend.Config, config)
        self._next_start = 0.0

    def start(self) -> None:
        """Check that the key is there, before a round depends on it."""
        self._key()

    def identity(self) -> str:
        extra = json.dumps(self.config.extra_body, sort_keys=True)
        mark = (
            f" +{hashlib.sha256(extra.encode()).hexdigest()[:8]}" if self.config.extra_body else ""
        )
        return f"openai: {self.config.model} at {self.config.base_url.rstrip('/')}{mark}"

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        try:
            key = self._key()
        except JudgeError as error:
            return [Reply(text=None, error=str(error))] * len(questions)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._ask(questions, key))
        with ThreadPoolExecutor(max_workers=1) as thread:  # called from an async actor
            return thread.submit(lambda: asyncio.run(self._ask(questions, key))).result()

    def _key(self) -> str | None:
        name = self.config.api_key_env
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            problem = "is not set" if not key else "holds characters that no key has"
            raise JudgeError(
                f"the environment variable {name} {problem} in the judge worker. "
                "Set by: backend.api_key_env. Fix: export it where the worker starts"
            )
        return key

    async def _ask(self, questions: Sequence[Question], key: str | None) -> list[Reply]:
        import httpx

        limits = httpx.Limits(max_connections=self.config.max_concurrency)
        local = is_loopback(self.config.base_url)
        # No time limit of httpx's own: `_Batch` bounds the whole request, not each read.
        async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=not local) as client:  # nosec B113 # limits per request
            batch = _Batch(self, client, key)
            return list(await asyncio.gather(*(batch.reply(question) for question in questions)))

    async def wait_for_turn(self) -> None:
        """Space requests evenly, over all batches, and not before a server's Retry-After."""
        now = time.monotonic()
        begin = max(now, self._next_start)
        per_minute = self.config.requests_per_minute
        self._next_start = begin + (60.0 / per_minute if per_minute else 0.0)
        await asyncio.sleep(begin - now)

    def hold(self, seconds: float) -> None:
        """Begin no request for so long: the server said so."""
        self._next_start = max(self._next_start, time.monotonic() + seconds)


@dataclass(frozen=True)
class _Attempt:
    """How one request ended."""

    text: str | None = None
    error: str = ""
    can_retry: bool = False
    wait_seconds: float | None = None
    """What the server asked for."""


class _Batch:
    """The requests of one `ask`: bounded repeats for each, and an end to asking when all fail."""

    def __init__(self, backend: OpenAIBackend, client: httpx.AsyncClient, key: str | None) -> None:
        self._backend = backend
        self._config = backend.config
        self._client = client
        self._key = key
        self._slots = asyncio.Semaphore(self._config.max_concurrency)
        self._failures_in_a_row = 0

    async def reply(self, question: Question) -> Reply:
        """The reply to one question, whatever happens."""
        async with self._slots:
            started = time.monotonic()
            if self._failures_in_a_row >= self._config.give_up_after:
                failed = f"{self._failures_in_a_row} questions in a row failed"
                return Reply(text=None, error=f"not asked: {failed} (backend.give_up_after)")
            try:
                with boundary(JudgeError, "the request failed"):
                    attempt, started = await self._with_repeats(question)
            except PawlError as error:
                attempt = _Attempt(error=str(error))
        beat(replies=1)
        seconds = time.monotonic() - started
        if attempt.text is not None:
            return Reply(text=self._redacted(attempt.text), seconds=seconds)
        return Reply(text=None, error=cleaned(self._redacted(attempt.error)), seconds=seconds)

    async def _with_repeats(self, question: Question) -> tuple[_Attempt, float]:
        """The last attempt, and when it (not the wait before it) began.

        A question keeps its slot while it waits: a server in trouble meets a few questions, not all.
        """
        attempt, began = _Attempt(), time.monotonic()
        for repeat in range(self._config.max_retries + 1):
            await self._backend.wait_for_turn()
            began = time.monotonic()
            attempt = await self._request(question)
            if not attempt.can_retry:
                self._failures_in_a_row = 0
                return attempt, began
            wait = self._wait(attempt, repeat)
            if repeat == self._config.max_retries or wait > self._config.max_wait_seconds:
                break
            logger.info("judge endpoint: repeat %d in %.1f s", repeat + 1, wait)
            await asyncio.sleep(wait)
        self._failures_in_a_row += 1
        return _Attempt(error=f"{attempt.error} (after {repeat + 1} tries)"), began

    def _wait(self, attempt: _Attempt, repeat: int) -> float:
        if attempt.wait_seconds is not None:
            if attempt.wait_seconds <= self._config.max_wait_seconds:
                self._backend.hold(attempt.wait_seconds)
            return attempt.wait_seconds
        full = min(self._config.max_wait_seconds, self._config.retry_seconds * 2.0**repeat)
        return full * random.uniform(0.5, 1.0)  # so that workers do not repeat together  # nosec B311 # spreads waits

    async def _request(self, question: Question) -> _Attempt:
        import httpx

        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                return await self._exchange(question)
        except TimeoutError:
            limit = f"{self._config.timeout_seconds:g} s (backend.timeout_seconds)"
            return _Attempt(error=f"no answer within {limit}", can_retry=True)
        except httpx.TransportError as error:
            return _Attempt(error=f"{type(error).__name__}: {error}", can_retry=True)

    async def _exchange(self, question: Question) -> _Attempt:
        url = f"{self._config.base_url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        body = json.dumps(self._body(question)).encode()
        async with self._client.stream("POST", url, content=body, headers=headers) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MAX_RESPONSE_BYTES:
                    return _Attempt(error=f"the response is larger than {MAX_RESPONSE_BYTES} bytes")
        if response.status_code == 200:
            return _read(bytes(content))
        shown = cleaned(self._redacted(content.decode("utf-8", "replace")), 300)
        return _Attempt(
            error=f"HTTP {response.status_code}: {shown}",
            can_retry=response.status_code == 429 or response.status_code >= 500,
            wait_seconds=retry_after_seconds(response.headers.get("Retry-After")),
        )

    def _body(self, question: Question) -> dict[str, Json]:
        body: dict[str, Json] = {
            "model": self._config.model,
            "messages": [{"role": m.role, "content": m.content} for m in question.messages],
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
            **self._config.extra_body,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _redacted(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "(key)")


def _read(content: bytes) -> _Attempt:
    """The text of a chat completion; what has none is an error that repeating would not mend."""
    try:
        choice = json.loads(content)["choices"][0]
        message = choice["message"]
        refusal, text = message.get("refusal"), message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        shown = cleaned(content.decode("utf-8", "replace"), 300)
        return _Attempt(error=f"the response is not a chat completion: {shown}")
    if refusal:
        return _Attempt(error=f"the model refused: {str(refusal)[:300]}")
    if not isinstance(text, str) or not text.strip():
        return _Attempt(
            error=f"the answer is empty (finish_reason {choice.get('finish_reason')!r})"
        )
    if choice.get("finish_reason") == "length":
        return _Attempt(error=CUT)
    return _Attempt(text=text)


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


def is_loopback(url: str) -> bool:
    """Whether `url` names this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address_problem(url: str) -> str | None:
    """What to mend in a base_url, or None."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "write scheme://host:port/v1"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "begin with http:// or https:// and a host"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "leave out user, password, query and fragment; a key belongs in api_key_env"
    return None
