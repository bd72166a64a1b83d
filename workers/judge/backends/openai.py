"""Any OpenAI-compatible endpoint as the judge: the only module that imports httpx, when it is asked.

The key is read from the environment for each batch of questions and is in nothing that this module
returns, logs or raises. Every wait is bounded: by request, by retry, and by failures in a row.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from policies.base.bounds import MAX_COUNT, MAX_SCORE, MAX_SECONDS, MAX_WORKERS
from policies.base.component import Component
from policies.base.errors import ConfigurationError, JudgeError, PawlError, boundary, explain
from policies.base.records import Json, Message
from policies.base.requirements import Requirements
from workers.cluster.heartbeat import report_progress
from workers.judge.chat_completion import (
    Attempt,
    Endpoint,
    model_names,
    other_addresses,
    read_completion,
    retry_after_seconds,
)
from workers.judge.judge import (
    BackendContext,
    JudgeBackend,
    Question,
    Reply,
    Unavailable,
    Usage,
)
from workers.judge.parse import cleaned

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_RESPONSE_BYTES = 8 * 2**20
_PROBE_SECONDS = 15.0
"""Longest wait for the answer to a trial question."""
_TRIAL = Question(messages=(Message(role="user", content="Say OK."),), max_tokens=1)
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
        timeout_seconds: float = Field(default=60.0, gt=0, le=MAX_SECONDS)
        """Longest time for one request, from connecting to the last byte."""
        max_retries: int = Field(default=4, ge=0, le=20)
        """Repeats of a request after 429, 5xx, a timeout or a lost connection."""
        retry_seconds: float = Field(default=1.0, ge=0, le=MAX_SECONDS)
        """Wait before the first repeat; it doubles each time, less a random part."""
        max_wait_seconds: float = Field(default=60.0, gt=0, le=MAX_SECONDS)
        """Longest wait before a repeat. A server that asks for more (Retry-After) gets no repeat."""
        give_up_after: int = Field(default=16, ge=1, le=MAX_COUNT)
        """Questions in a row that may fail after all repeats; the rest of the batch is then not asked."""
        max_concurrency: int = Field(default=8, ge=1, le=MAX_WORKERS)
        """Questions under way at once, those that wait for a repeat included."""
        requests_per_minute: float | None = Field(default=None, gt=0, le=MAX_SCORE)
        """Requests begun per minute, evenly spaced; null sets no limit."""
        allow_http: bool = False
        """Send the key without TLS to a host that is not this machine. Off: such a config is refused."""
        extra_body: dict[str, Json] = Field(default_factory=dict)
        """More fields of the request, e.g. `{reasoning_effort: low}`; null removes one of ours. No secrets."""

        def requires(self) -> Requirements:
            """The address that it asks, and the variable that holds the key."""
            return super().requires() + Requirements(hosts=(self.base_url,))

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

    def probe(self) -> Unavailable | None:
        """Ask one question of one token, and when that fails, which models there are and where they may be."""
        try:
            key = self._key()
        except JudgeError as error:
            return Unavailable(str(error))
        return _run(lambda: self._probe(key))

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        try:
            key = self._key()
        except JudgeError as error:
            return [Reply(text=None, error=str(error), usage=Usage())] * len(questions)
        return _run(lambda: self._ask(questions, key))

    def _key(self) -> str | None:
        name = self.config.api_key_env
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            problem = "is not set" if not key else "holds characters that no key has"
            raise JudgeError(
                f"the environment variable {name} {problem}. "
                f"Set by: backend.api_key_env of a judge. Fix: export {name} where the run starts"
            )
        return key

    async def _ask(self, questions: Sequence[Question], key: str | None) -> list[Reply]:
        async with self._client() as client:
            batch = _Batch(self, client, key)
            return list(await asyncio.gather(*(batch.reply(question) for question in questions)))

    async def _probe(self, key: str | None) -> Unavailable | None:
        config = self.config
        endpoint = Endpoint(config.base_url, config.model, config.api_key_env)
        async with self._client() as client:
            batch = _Batch(self, client, key)
            with boundary(JudgeError, "the request failed"):
                attempt = await batch.request(_TRIAL, min(config.timeout_seconds, _PROBE_SECONDS))
            if attempt.status is None or (attempt.status == 200 and attempt.is_completion):
                return endpoint.unavailable(attempt, None, None)
            served = await batch.models(config.base_url)
            meant = None
            for url in other_addresses(config.base_url) if served is None else ():
                if await batch.models(url):
                    meant = url
                    break
            return endpoint.unavailable(attempt, served, meant)

    def _client(self) -> httpx.AsyncClient:
        import httpx

        limits = httpx.Limits(max_connections=self.config.max_concurrency)
        local = is_loopback(self.config.base_url)
        # No time limit of httpx's own: `_Batch` bounds the whole request, not each read.
        return httpx.AsyncClient(timeout=None, limits=limits, trust_env=not local)  # nosec B113 # limits per request

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
                error = f"not asked: {failed} (backend.give_up_after)"
                return Reply(text=None, error=error, usage=Usage())
            sent: list[Attempt] = []
            try:
                with boundary(JudgeError, "the request failed"):
                    attempt, started = await self._with_repeats(question, sent)
            except PawlError as error:
                attempt = Attempt(error=str(error))
        report_progress(replies=1)
        seconds, usage = time.monotonic() - started, _usage(sent)
        if attempt.text is not None:
            return Reply(text=self._redacted(attempt.text), seconds=seconds, usage=usage)
        shown = cleaned(self._redacted(attempt.error))
        return Reply(text=None, error=shown, seconds=seconds, usage=usage)

    async def _with_repeats(self, question: Question, sent: list[Attempt]) -> tuple[Attempt, float]:
        """The last attempt, and when it (not the wait before it) began; all of them are added to `sent`.

        A question keeps its slot while it waits: a server in trouble meets a few questions, not all.
        """
        attempt, began = Attempt(), time.monotonic()
        for repeat in range(self._config.max_retries + 1):
            await self._backend.wait_for_turn()
            began = time.monotonic()
            attempt = await self.request(question, self._config.timeout_seconds)
            sent.append(attempt)
            if not attempt.can_retry:
                self._failures_in_a_row = 0
                return attempt, began
            wait = self._wait(attempt, repeat)
            if repeat == self._config.max_retries or wait > self._config.max_wait_seconds:
                break
            logger.info("judge endpoint: repeat %d in %.1f s", repeat + 1, wait)
            await asyncio.sleep(wait)
        self._failures_in_a_row += 1
        return Attempt(error=f"{attempt.error} (after {repeat + 1} tries)"), began

    def _wait(self, attempt: Attempt, repeat: int) -> float:
        if attempt.wait_seconds is not None:
            if attempt.wait_seconds <= self._config.max_wait_seconds:
                self._backend.hold(attempt.wait_seconds)
            return attempt.wait_seconds
        full = min(self._config.max_wait_seconds, self._config.retry_seconds * 2.0**repeat)
        return full * random.uniform(0.5, 1.0)  # so that workers do not repeat together  # nosec B311 # spreads waits

    async def request(self, question: Question, seconds: float) -> Attempt:
        """Ask once, for at most so many seconds."""
        import httpx

        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(question)
        except TimeoutError:
            limit = f"{seconds:g} s (backend.timeout_seconds)"
            return Attempt(error=f"no answer within {limit}", can_retry=True)
        except httpx.TransportError as error:
            return Attempt(error=f"{type(error).__name__}: {error}", can_retry=True)

    async def models(self, base_url: str) -> list[str] | None:
        """The models that an endpoint at `base_url` names; None where there is no such list."""
        import httpx

        url = f"{base_url.rstrip('/')}/models"
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                async with self._client.stream("GET", url, headers=self._headers()) as response:
                    content = bytearray()
                    async for part in response.aiter_bytes():
                        content += part
                        if len(content) > MAX_RESPONSE_BYTES:
                            return None
        except (TimeoutError, httpx.HTTPError):
            return None
        return model_names(bytes(content)) if response.status_code == 200 else None

    def _headers(self) -> dict[str, str]:
        return {} if self._key is None else {"Authorization": f"Bearer {self._key}"}

    async def _exchange(self, question: Question) -> Attempt:
        url = f"{self._config.base_url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json", **self._headers()}
        body = json.dumps(self._body(question)).encode()
        async with self._client.stream("POST", url, content=body, headers=headers) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MAX_RESPONSE_BYTES:
                    return Attempt(error=f"the response is larger than {MAX_RESPONSE_BYTES} bytes")
        if response.status_code == 200:
            return read_completion(bytes(content))
        shown = cleaned(self._redacted(content.decode("utf-8", "replace")), 300)
        return Attempt(
            error=f"HTTP {response.status_code}: {shown}",
            status=response.status_code,
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


def _usage(sent: Sequence[Attempt]) -> Usage:
    """Return what a question took, all its repeats together."""
    counted = [attempt.tokens for attempt in sent if attempt.tokens is not None]
    return Usage(
        calls=len(sent),
        prompt_tokens=sum(prompt for prompt, _ in counted),
        completion_tokens=sum(completion for _, completion in counted),
        uncounted=len(sent) - len(counted),
    )


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, also where a loop runs already (in an async actor)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()


def is_loopback(url: str) -> bool:
    """Tell whether `url` names this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address_problem(url: str) -> str | None:
    """Return what to mend in a base_url, or None."""
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
