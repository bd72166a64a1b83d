"""The rows of one source become prompts one by one; what is wrong with any of them is told at the end, at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from orchestrator.prompts.chats import is_chat, read_chat, read_tools, shown_to_model
from orchestrator.prompts.column_paths import has, look_up
from orchestrator.prompts.format_choice import Reading
from orchestrator.prompts.repeats import difference
from orchestrator.prompts.row_config import RowConfig
from orchestrator.prompts.row_values import Row, RowError, as_json, as_text, shown
from orchestrator.prompts.source import chat, digest_of, is_safe_id
from orchestrator.prompts.templates import fill
from orchestrator.prompts.whole_numbers import restore_whole
from policies.base.errors import InputError, explain
from policies.base.records import Json, Message, Prompt

logger = logging.getLogger(__name__)

MAX_PROBLEMS = 100
NUM_SHOWN = 5
DEMONSTRATION = "demonstration"
"""Metadata that the strategy `demonstrations` reads."""
_MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})


class CollectedRows:
    """Prompts read so far, and what was wrong on the way."""

    def __init__(self, config: RowConfig, reading: Reading) -> None:
        self.config = config
        self.reading = reading
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._prompts: dict[str, Prompt] = {}
        self._num_rows = 0
        self._num_ended = 0
        self._first_of_question: dict[str, tuple[str, str]] = {}
        self._place_of_name: dict[str, str] = {}
        self._repeats: list[str] = []
        self._conflicts: list[str] = []
        self._in_conflict: dict[str, None] = {}

    def add(self, row: Row | RowError) -> None:
        """Read one row; what is wrong with it is kept for `checked`."""
        if isinstance(row, RowError):
            self.problems.append(str(row))
            return
        try:
            self._add(row)
        except RowError as error:
            self.problems.append(f"{row.where}: {error}")

    def checked(self, origin: str) -> list[Prompt]:
        """The prompts, in the order of their rows.

        Raises:
            InputError: rows are bad, contradict each other, or all read the same.
        """
        self._refuse_if_bad(origin)
        self._report_repeats(origin)
        self._report_conflicts(origin)
        if self.config.template is not None and self._num_rows > 1 and len(self._prompts) == 1:
            raise InputError(
                explain(
                    f"all {self._num_rows} rows of {origin} become the same prompt",
                    value=self.config.template,
                    where="prompts.*.template",
                    fix="put a column into the template in which the rows differ",
                )
            )
        if self._num_ended:
            self.notes.append(
                f"{self._num_ended} chats end with the assistant's turn, no part of the prompt (last_assistant)"
            )
        prompts = [p for i, p in self._prompts.items() if i not in self._in_conflict]
        if self._prompts and not prompts:
            raise InputError(
                explain(
                    f"every prompt of {origin} contradicts another and is left out",
                    value=self.config.conflicts,
                    where="prompts.*.conflicts",
                    fix="correct the rows, or set prompts.*.conflicts: keep_first",
                )
            )
        return restore_whole(prompts, (*self.reading.metadata, *self.reading.kept))

    def _add(self, row: Row) -> None:
        self._num_rows += 1
        self._check_media(row.values)
        messages, said = self._messages(row)
        tools = self._tools(row)
        name = self._name(row.values)
        if name is not None:
            if (first := self._place_of_name.get(name)) is not None:
                raise RowError(f"id {name!r} was given before, at {first}")
            self._place_of_name[name] = row.where
        content = [shown_to_model(message) for message in messages]
        asked = [content, list(tools)] if tools else [content]
        prompt_id = name if name is not None and is_safe_id(name) else digest_of(name, *asked)
        prompt = Prompt(
            id=prompt_id,
            messages=messages,
            answer=self._answer(row.values, said),
            metadata=self._metadata(row.values, said),
            tools=tools,
        )
        if self._asked_before(prompt, asked, row.where):
            return
        if prompt_id in self._prompts:
            raise RowError(f"id {prompt_id!r} belongs to another prompt already")
        self._prompts[prompt_id] = prompt

    # Rows that ask the same

    def _asked_before(self, prompt: Prompt, asked: list[Any], where: str) -> bool:
        question = digest_of(*asked)
        # Blanks at the ends of lines make another text, but not another question.
        alike = digest_of(*_stripped(asked))
        for key in (question, alike):
            if (first := self._first_of_question.get(key)) is None:
                continue
            known, place = self._prompts[first[0]], first[1]
            differs = difference(known, prompt, self.config.columns.metadata)
            if differs is not None:
                self._conflicts.append(f"{where} asks the same as {place}: {differs}")
                self._in_conflict |= {known.id: None} if self.config.conflicts == "drop" else {}
                return True
            if key == question:
                if self.config.duplicates == "refuse":
                    raise RowError(f"the same prompt as at {place}")
                self._repeats.append(f"{where} repeats {place}")
                return True
        self._first_of_question.setdefault(question, (prompt.id, where))
        self._first_of_question.setdefault(alike, (prompt.id, where))
        return False

    def _report_repeats(self, origin: str) -> None:
        if self._repeats:
            logger.warning(
                "%s: %d prompts left out because they come again (%s)",
                origin,
                len(self._repeats),
                "; ".join(self._repeats[:3]),
            )

    def _report_conflicts(self, origin: str) -> None:
        if not self._conflicts:
            return
        count = len(self._conflicts)
        pairs = "\n  ".join(self._conflicts[:NUM_SHOWN]) + ("\n  ..." if count > NUM_SHOWN else "")
        if self.config.conflicts == "refuse":
            raise InputError(
                f"{count} row{'' if count == 1 else 's'} of {origin} contradict a row that asks the same:\n"
                f"  {pairs}\nSet by: prompts.*.conflicts = refuse. Fix: correct these rows, or set "
                "prompts.*.conflicts: keep_first (the first row counts) or prompts.*.conflicts: drop (none does)"
            )
        kept = (
            "the first row of each is kept"
            if self.config.conflicts == "keep_first"
            else "all left out"
        )
        text = f"{count} rows contradict another row with the same question, {kept}: {pairs}"
        self.notes.append(text)
        logger.warning("%s: %s", origin, text)

    def _refuse_if_bad(self, origin: str) -> None:
        if self.problems:
            count = len(self.problems)
            many = f"at least {count}" if count >= MAX_PROBLEMS else str(count)
            more = "\n  ..." if count > NUM_SHOWN else ""
            raise InputError(
                f"{many} bad row{'' if count == 1 else 's'} in {origin}:\n  "
                + "\n  ".join(self.problems[:NUM_SHOWN])
                + f"{more}\nSet by: prompts.* (read as format {self.reading.format.name}). Fix: correct these rows, or "
                "map other columns (prompts.*.columns)"
            )

    # Parts of one row

    def _messages(self, row: Row) -> tuple[tuple[Message, ...], str | None]:
        """Return what is shown to the policy, and the assistant's turn that was taken off its end."""
        config, reading = self.config, self.reading
        system = self._system(row.values)
        if config.template is not None and config.columns.messages is None:
            text = as_text(fill(config.template, row.values), "the filled template")
            return chat(text, system), None
        asked = reading.format.question(row.values, reading.prompt)
        if config.columns.messages is None and not is_chat(asked):
            return chat(as_text(asked, reading.prompt), system), None
        messages = read_chat(
            asked, reading.prompt, is_padded=row.is_padded, ignored=config.ignore_keys
        )
        said = None
        if messages[-1].role == "assistant":
            said = self._last_turn(messages[-1])
            messages = messages[:-1]
        if messages[-1].role == "assistant":
            raise RowError(f"{reading.prompt!r} ends with two turns of the assistant")
        if system is None:
            return messages, said
        if messages[0].role == "system":
            raise RowError(
                "the chat has a system message of its own, and `system` sets another; leave out one of the two "
                "(prompts.*.system)"
            )
        return (Message(role="system", content=system), *messages), said

    def _last_turn(self, last: Message) -> str:
        column, layout = self.reading.prompt, self.reading.format
        wanted = self.config.last_assistant
        if wanted == "auto" and not layout.ends_with_answer:
            wanted = "refuse"
        if wanted == "refuse":
            raise RowError(
                f"{column!r} ends with the assistant's turn: nothing is left to answer. Set prompts.*.last_assistant: "
                "answer to take this turn off as the reference answer, or drop to leave it out"
            )
        if last.tool_calls:
            raise RowError(
                f"{column!r} ends with a tool call that nobody answered; leave the row out, or end it with the answer"
            )
        self._num_ended += 1
        return last.content

    def _system(self, values: Mapping[str, Any]) -> str | None:
        path = self.reading.system
        found = look_up(values, path) if path is not None and has(values, path) else None
        if found is None or found == "":
            return self.config.system
        if self.config.system is not None:
            raise RowError(
                f"{path!r} holds a system message, and `system` sets another; leave out prompts.*.system or "
                "prompts.*.columns.system"
            )
        return as_text(found, str(path))

    def _tools(self, row: Row) -> tuple[dict[str, Json], ...]:
        path = self.reading.tools
        if path is None or not (
            "tools" in self.config.columns.model_fields_set or has(row.values, path)
        ):
            return ()
        return read_tools(look_up(row.values, path), path, is_padded=row.is_padded)

    def _answer(self, values: Mapping[str, Any], said: str | None) -> Json:
        reading = self.reading
        wanted = self.config.last_assistant
        if said is not None and wanted == "answer":
            return said
        if reading.answer is not None and (reading.answer_required or has(values, reading.answer)):
            return reading.format.solve(values, reading.answer)
        if reading.answer is not None and reading.format.name in ("gsm8k", "math"):
            return reading.format.solve(values, reading.answer)
        return said if wanted == "auto" and "answer" not in self._given else None

    @property
    def _given(self) -> set[str]:
        return self.config.columns.model_fields_set

    def _metadata(self, values: Mapping[str, Any], said: str | None) -> dict[str, Json]:
        found = dict(self.reading.format.extra(values))  # nosec B610 # no SQL: a layout's own columns
        if said is not None:
            found[DEMONSTRATION] = [{"role": "assistant", "content": said}]
        for path in self.reading.kept:
            try:
                found[path] = as_json(look_up(values, path), path)
            except RowError:
                continue  # bytes, dates: nothing that a verifier could be handed
        for path in self.reading.metadata:
            found[path] = as_json(look_up(values, path), path)
        return found

    def _name(self, values: Mapping[str, Any]) -> str | None:
        column = self.config.columns.id
        if column is None:
            return None
        value = look_up(values, column)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise RowError(
                f"{column!r} must be text or an integer that names the prompt, got {shown(value)}"
            )
        return str(value)

    def _check_media(self, values: Mapping[str, Any]) -> None:
        for column in values:
            if (
                str(column).lower() in _MEDIA
                and values[column]
                and column
                not in (
                    *self.config.ignore_keys,
                    *self.reading.metadata,
                )
            ):
                raise RowError(
                    f"{column!r} is not text, and the policy would be shown text alone. If it may be lost, set "
                    f"prompts.*.ignore_keys: [{column}]"
                )


def _stripped(value: Any) -> Any:
    if isinstance(value, str):
        return "\n".join(line.rstrip() for line in value.strip().splitlines())
    if isinstance(value, (list, tuple)):
        return [_stripped(item) for item in value]
    return value
