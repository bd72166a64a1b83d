"""The verdict cache: what a judge model said to a question, found again by the content of the question.

One JSON-lines file per worker, only ever appended to, so workers share a folder without locks; a worker
reads all files when it starts. Only replies that could be read are remembered: errors are asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

from policies.base.errors import JudgeError, PawlError
from policies.base.records import Json, PolicyVersion
from policies.storage.checksums import with_seal
from policies.storage.files import append_unsynced
from workers.judge.judge import JudgeBackend, Question, Reply, Unavailable, Usage

logger = logging.getLogger(__name__)

_OVERHEAD_BYTES = 250
"""What a Python dict entry with a 64-character key costs besides the text, about."""


class ReplyCache:
    """Reply texts by key, in memory and (with a folder) on disk.

    Memory is bounded: above `max_bytes` the replies used longest ago are forgotten; they stay on disk for
    the next start, and until then their questions are asked again.
    """

    def __init__(self, folder: Path | None, *, max_bytes: int = 64 * 2**20) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._file = folder / f"worker-{os.getpid()}-{uuid4().hex[:12]}.jsonl" if folder else None
        if folder is not None:
            self._read(folder)

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, key: str) -> str | None:
        """The reply to the question with this key, or None."""
        if key in self._texts:
            self._texts.move_to_end(key)
        return self._texts.get(key)

    def put(self, key: str, text: str) -> None:
        """Remember a reply; the line is on its way to disk when this returns."""
        if key in self._texts:
            return
        self._remember(key, text)
        if self._file is None:
            return
        line = json.dumps(with_seal({"key": key, "text": text})) + "\n"
        try:
            append_unsynced(self._file, line.encode())
        except (
            OSError,
            PawlError,
        ) as error:  # a cache only saves time: the run goes on without the file
            logger.warning(
                "judge cache %s cannot be written (%s): replies stay in memory", self._file, error
            )
            self._file = None

    def _remember(self, key: str, text: str) -> None:
        self._texts[key] = text
        self._num_bytes += len(text) + _OVERHEAD_BYTES
        while self._num_bytes > self._max_bytes and len(self._texts) > 1:
            _, dropped = self._texts.popitem(last=False)
            self._num_bytes -= len(dropped) + _OVERHEAD_BYTES

    def _read(self, folder: Path) -> None:
        torn = 0
        for path in sorted(p for p in folder.glob("worker-*.jsonl") if p.is_file()):
            with path.open("rb") as lines:
                for line in lines:
                    entry = _entry(line)
                    if entry is None:
                        torn += 1
                    elif entry[0] not in self._texts:
                        self._remember(*entry)
        if torn:  # a killed worker's last line, or one that another worker is just writing
            logger.info(
                "judge cache %s: %d lines cannot be read; they are asked again", folder, torn
            )


def _entry(line: bytes) -> tuple[str, str] | None:
    """Key and text of one line, or None when a killed worker left it unfinished, or it changed since."""
    try:
        value = json.loads(line)
        key, text = value["key"], value["text"]
        if value.keys() - {"key", "text"} and value != with_seal(
            value
        ):  # an older Pawl wrote no seal
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return (key, text) if isinstance(key, str) and isinstance(text, str) else None


def is_reply(line: bytes) -> bool:
    """Tell whether a line of a cache file is as it was written."""
    return _entry(line) is not None


def cache_scope(settings: Json, *, prompt_version: str, identity: str) -> str:
    """Return what all questions of one judge share: its settings, its prompt, and what answers."""
    return json.dumps([settings, prompt_version, identity], sort_keys=True)


class CachedBackend(JudgeBackend):
    """Asks `backend` only what the cache does not know, and each different question once."""

    def __init__(self, backend: JudgeBackend, *, cache: ReplyCache, scope: str) -> None:
        self._backend = backend
        self._cache = cache
        self.scope = scope
        """What all questions share, what answers included."""
        self.hits = 0
        """Questions that were not asked, since the start."""
        self.usage: Counter[str] = Counter()
        """What the questions that were asked took, since the start: the fields of `Usage`."""

    def identity(self) -> str:
        return self._backend.identity()

    def serve(self, policy: PolicyVersion) -> None:
        self._backend.serve(policy)

    def probe(self) -> Unavailable | None:
        return self._backend.probe()

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        keys = [self._key(question) for question in questions]
        known = {key: text for key in keys if (text := self._cache.get(key)) is not None}
        missing = {key: q for key, q in zip(keys, questions, strict=True) if key not in known}
        fresh: dict[str, Reply] = {}
        if missing:
            replies = self._backend.ask(list(missing.values()))
            if len(replies) != len(missing):
                raise JudgeError(
                    f"the backend gave {len(replies)} replies to {len(missing)} questions"
                )
            fresh = dict(zip(missing, replies, strict=True))
            for reply in replies:
                self.usage.update(asdict(reply.usage))
        self.hits += len(keys) - len(missing)
        answered: set[str] = set()
        results: list[Reply] = []
        for key in keys:
            if key in known:
                results.append(Reply(text=known[key], usage=Usage()))
            else:
                reply = fresh[key]
                if key in answered:
                    reply = replace(reply, seconds=0.0, usage=Usage())
                results.append(reply)
                answered.add(key)
        return results

    def keep(self, question: Question, reply: Reply) -> None:
        if reply.text is not None:
            self._cache.put(self._key(question), reply.text)

    def _key(self, question: Question) -> str:
        content = [
            self.scope,
            [[message.role, message.content] for message in question.messages],
            question.max_tokens,
            question.temperature,
            question.vote,
            question.choices,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
