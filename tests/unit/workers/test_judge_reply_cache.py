"""The verdict cache: found by content, shared by files, bounded, and never a home for errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from policies.base.errors import JudgeError
from policies.base.records import Message
from workers.judge.judge import JudgeBackend, Question, Reply
from workers.judge.reply_cache import CachedBackend, ReplyCache, cache_scope


class Counting(JudgeBackend):
    """Repeats the question, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        self.asked += [q.messages[0].content for q in questions]
        return [
            Reply(text=None, error="down")
            if "fail" in q.messages[0].content
            else Reply(text=f"re: {q.messages[0].content}", seconds=1.0)
            for q in questions
        ]

    def identity(self) -> str:
        return "counting"


def question(text: str, **settings: float) -> Question:
    return Question(messages=(Message(role="user", content=text),), max_tokens=9, **settings)  # type: ignore[arg-type]


def ask_and_keep(backend: CachedBackend, *questions: Question) -> list[str | None]:
    replies = backend.ask(questions)
    for asked, reply in zip(questions, replies, strict=True):
        backend.keep(asked, reply)
    return [reply.text for reply in replies]


def test_a_kept_reply_is_not_asked_again_and_hits_are_counted() -> None:
    inner = Counting()
    backend = CachedBackend(inner, cache=ReplyCache(None), scope="s")
    first = ask_and_keep(backend, question("a"), question("b"), question("a"))
    second = ask_and_keep(backend, question("b"), question("c"))
    assert inner.asked == ["a", "b", "c"]
    assert (first, second) == (["re: a", "re: b", "re: a"], ["re: b", "re: c"])
    assert backend.hits == 2


def test_what_changes_the_question_or_the_judge_changes_the_key() -> None:
    cache, inner = ReplyCache(None), Counting()
    for scope in ("one", "two"):
        backend = CachedBackend(inner, cache=cache, scope=scope)
        ask_and_keep(backend, question("a"), question("a", temperature=0.5), question("a", vote=1))
    assert len(inner.asked) == 6
    scopes = {
        cache_scope({"low": 1}, prompt_version="v1", identity="m"),
        cache_scope({"low": 2}, prompt_version="v1", identity="m"),
        cache_scope({"low": 1}, prompt_version="v2", identity="m"),
        cache_scope({"low": 1}, prompt_version="v1", identity="n"),
    }
    assert len(scopes) == 4


def test_errors_and_replies_that_nobody_kept_are_asked_again() -> None:
    inner = Counting()
    backend = CachedBackend(inner, cache=ReplyCache(None), scope="s")
    ask_and_keep(backend, question("fail"))
    backend.ask([question("unread")])
    ask_and_keep(backend, question("fail"), question("unread"))
    assert inner.asked == ["fail", "unread", "fail", "unread"]


def test_a_worker_reads_what_all_workers_wrote_and_skips_torn_lines(tmp_path: Path) -> None:
    one, two = ReplyCache(tmp_path), ReplyCache(tmp_path)
    one.put("k1", "v1\n\ud83d")
    two.put("k2", "v2")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    with files[0].open("ab") as handle:
        handle.write(b'{"key": "k3", "te')
    (tmp_path / "worker-x.jsonl").write_bytes(b'\xff\n[]\n{"key": 1, "text": 2}\n')
    again = ReplyCache(tmp_path)
    assert (again.get("k1"), again.get("k2"), again.get("k3")) == ("v1\n\ud83d", "v2", None)


def test_memory_is_bounded_and_the_least_used_reply_goes_first(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path, max_bytes=3_000)
    cache.put("kept", "x" * 100)
    for index in range(50):
        cache.put(str(index), "x" * 100)
        assert cache.get("kept") is not None
    assert len(cache) <= 9
    assert cache.get("0") is None
    assert len(ReplyCache(tmp_path)) == 51


def test_a_folder_that_cannot_be_written_costs_the_file_not_the_run(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = ReplyCache(blocked / "cache")
    cache.put("k", "v")
    assert cache.get("k") == "v"


def test_a_backend_that_miscounts_is_an_error_not_a_shift_of_replies() -> None:
    class Short(Counting):
        def ask(self, questions: Sequence[Question]) -> list[Reply]:
            return super().ask(questions)[1:]

    backend = CachedBackend(Short(), cache=ReplyCache(None), scope="s")
    with pytest.raises(JudgeError, match="1 replies to 2 questions"):
        backend.ask([question("a"), question("b")])
