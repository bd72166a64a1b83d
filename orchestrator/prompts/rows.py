"""From rows of a data set (files or a hub) to prompts: column mapping, checks, ids, slices.

Every complaint names the place of the row (`file:line`). Bad rows are collected, so that one message tells
all of them; after `MAX_PROBLEMS` the rest of the data set is not read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from orchestrator.prompts.source import PromptSource, chat, digest_of, is_safe_id
from policies.component import Settings
from policies.errors import InputError, explain
from policies.records import Json, Message, Prompt
from policies.seeds import derive_rng

logger = logging.getLogger(__name__)

MAX_PROBLEMS = 100
NUM_SHOWN = 5
MAX_JSON_DEPTH = 64
ROLES = ("system", "user", "assistant", "tool")

# One pass over the template: braces in the data are never looked at again.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w .-]*)\}")


class Row(NamedTuple):
    """A row and where it stands, e.g. `train.jsonl:17`."""

    where: str
    values: Mapping[str, Any]


class RowError(Exception):
    """One row cannot be used; collected into an InputError."""


class Columns(Settings):
    """Which column holds what."""

    prompt: str = "prompt"
    """Text of the question; not read when `messages` or `template` is set."""
    messages: str | None = None
    """Chat messages, a list of {role, content} that ends with the user's turn; replaces `prompt`."""
    answer: str | None = "answer"
    """Ground truth; null for data without one. The default may be absent from the data."""
    id: str | None = None
    """Names of prompts; a digest of the messages by default and where a name has unusual characters."""
    metadata: tuple[str, ...] = ()
    """Columns to keep for verifiers, by their own names."""


class RowConfig(PromptSource.Config):
    """Settings of sources that read rows."""

    columns: Columns = Field(default_factory=Columns)
    """Which column holds what, e.g. {prompt: question, answer: answer}."""
    system: str | None = None
    """System message put before every prompt."""
    template: str | None = None
    """Text of the user message with {column} placeholders; {{ and }} stand for braces."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most so many rows of the data."""
    shuffle_seed: int | None = None
    """Shuffle what was read with this seed, before `skip` and `take`; null keeps the order of the data."""
    skip: int = Field(default=0, ge=0)
    """Leave out so many prompts at the beginning: two sources with disjoint slices split one data set."""
    take: int | None = Field(default=None, gt=0)
    """Use at most so many prompts after `skip`."""
    duplicates: Literal["keep_first", "refuse"] = "keep_first"
    """What to do with a prompt that comes again: leave it out with a warning, or refuse the data."""


class RowSource(PromptSource):
    """A source that reads rows; a member of the family says only where the rows come from."""

    Config = RowConfig
    config: RowConfig

    def rows(self) -> Iterator[Row | RowError]:
        """Yield the rows in order; a row that cannot be read is an error in its place."""
        raise NotImplementedError

    def origin(self) -> str:
        """Where the rows come from, for messages."""
        raise NotImplementedError

    def load(self) -> list[Prompt]:
        collected = _Collected(self.config)
        for number, row in enumerate(self.rows()):
            if number == self.config.limit or len(collected.problems) >= MAX_PROBLEMS:
                break
            collected.add(row)
        collected.refuse_if_bad(self.origin())
        if not collected.prompts:
            raise InputError(
                explain(
                    "there are no prompts in it",
                    value=self.origin(),
                    where="prompts.*",
                    fix="name a data set with at least one row",
                )
            )
        return self._slice(list(collected.prompts.values()))

    def _slice(self, prompts: list[Prompt]) -> list[Prompt]:
        config = self.config
        if config.shuffle_seed is not None:
            derive_rng(config.shuffle_seed, "prompts").shuffle(prompts)
        end = None if config.take is None else config.skip + config.take
        taken = prompts[config.skip : end]
        if not taken:
            raise InputError(
                explain(
                    f"nothing is left of {len(prompts)} prompts of {self.origin()}",
                    value=config.skip,
                    where="prompts.*.skip",
                    fix=f"skip fewer than {len(prompts)}",
                )
            )
        return taken


class _Collected:
    """Prompts read so far, and what was wrong on the way."""

    def __init__(self, config: RowConfig) -> None:
        self.config = config
        self.prompts: dict[str, Prompt] = {}
        self.problems: list[str] = []
        self._place_of_id: dict[str, str] = {}
        self._place_of_name: dict[str, str] = {}
        self._duplicates: list[str] = []

    def add(self, row: Row | RowError) -> None:
        if isinstance(row, RowError):
            self.problems.append(str(row))
            return
        try:
            self._add(row)
        except RowError as error:
            self.problems.append(f"{row.where}: {error}")

    def _add(self, row: Row) -> None:
        messages = _messages(row.values, self.config)
        name = _name(row.values, self.config.columns.id)
        if name is not None:
            if (first := self._place_of_name.get(name)) is not None:
                raise RowError(f"id {name!r} was given before, at {first}")
            self._place_of_name[name] = row.where
        content = [[m.role, m.content] for m in messages]
        prompt_id = name if name is not None and is_safe_id(name) else digest_of(name, content)
        seen_as = digest_of(content)
        if (first := self._place_of_id.get(seen_as)) is not None:
            if self.config.duplicates == "refuse":
                raise RowError(f"the same prompt as at {first}")
            self._duplicates.append(f"{row.where} repeats {first}")
            return
        self._place_of_id[seen_as] = row.where
        if prompt_id in self.prompts:
            raise RowError(f"id {prompt_id!r} belongs to another prompt already")
        self.prompts[prompt_id] = Prompt(
            id=prompt_id,
            messages=messages,
            answer=_answer(row.values, self.config.columns),
            metadata={name: _json(row.values, name) for name in self.config.columns.metadata},
        )

    def refuse_if_bad(self, origin: str) -> None:
        if self._duplicates:
            logger.warning(
                "%s: %d prompts left out because they come again (%s)",
                origin,
                len(self._duplicates),
                "; ".join(self._duplicates[:3]),
            )
        if self.problems:
            count = len(self.problems)
            many = f"at least {count}" if count >= MAX_PROBLEMS else str(count)
            more = "\n  ..." if count > NUM_SHOWN else ""
            raise InputError(
                f"{many} bad row{'' if count == 1 else 's'} in {origin}:\n  "
                + "\n  ".join(self.problems[:NUM_SHOWN])
                + f"{more}\nSet by: prompts.*. Fix: correct these rows, or map other columns (prompts.*.columns)"
            )


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Put the columns into a template.

    Example:
        >>> fill("{question} Answer in {{}}.", {"question": "1+{x}?"})
        '1+{x}? Answer in {}.'
    """

    def replace(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        name = match[1]
        if values.get(name) is None:
            raise RowError(f"the template names {name!r}; columns here: {_listed(values)}")
        value = values[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _PLACEHOLDER.sub(replace, template)


def _messages(values: Mapping[str, Any], config: RowConfig) -> tuple[Message, ...]:
    columns = config.columns
    if columns.messages is not None:
        messages = _chat(_required(values, columns.messages), columns.messages)
        if config.system is None:
            return messages
        if messages[0].role == "system":
            raise RowError("the chat has a system message of its own, and `system` sets another")
        return (Message(role="system", content=config.system), *messages)
    if config.template is not None:
        return chat(_text(fill(config.template, values), "the filled template"), config.system)
    return chat(_text(_required(values, columns.prompt), columns.prompt), config.system)


def _chat(value: Any, column: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RowError(
            f"{column!r} must be a list of messages that is not empty, got {_shown(value)}"
        )
    messages = []
    for index, item in enumerate(value):
        where = f"{column}[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(f"{where} must be an object with role and content, got {_shown(item)}")
        role = item.get("role")
        if role not in ROLES:
            raise RowError(f"{where} has the unknown role {role!r}; known: {', '.join(ROLES)}")
        messages.append(Message(role=role, content=_text(item.get("content"), f"{where}.content")))
    if messages[-1].role == "assistant":
        raise RowError(f"{column!r} ends with the assistant's turn: nothing is left to answer")
    if not any(message.role == "user" for message in messages):
        raise RowError(f"{column!r} has no message of the user")
    return tuple(messages)


def _name(values: Mapping[str, Any], column: str | None) -> str | None:
    if column is None:
        return None
    value = _required(values, column)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise RowError(
            f"{column!r} must be text or an integer that names the prompt, got {_shown(value)}"
        )
    return str(value)


def _answer(values: Mapping[str, Any], columns: Columns) -> Json:
    if columns.answer is None:
        return None
    if columns.answer not in values and "answer" not in columns.model_fields_set:
        return None
    return _json(values, columns.answer)


def _required(values: Mapping[str, Any], column: str) -> Any:
    if column not in values:
        raise RowError(f"no {column!r}; columns here: {_listed(values)}")
    return values[column]


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{what!r} must be text, got {_shown(value)}")
    if not value.strip():
        raise RowError(f"{what!r} is empty")
    if "\x00" in value:
        raise RowError(f"{what!r} holds a NUL character")
    _check_unicode(value, what)
    return value


def _json(values: Mapping[str, Any], column: str) -> Json:
    value = _required(values, column)
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"{column!r} must be JSON, got {_shown(value)}: {error}") from error
    _check_unicode(text, column)
    if _depth(value) > MAX_JSON_DEPTH:
        raise RowError(f"{column!r} is nested deeper than {MAX_JSON_DEPTH} levels")
    plain: Json = json.loads(text)
    return plain


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list, tuple))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"{what!r} holds half of a surrogate pair at character {error.start}"
        ) from error


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(map(str, values)) or "none"


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
