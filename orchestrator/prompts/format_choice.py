"""Chooses the layout of a data set, told by its first rows or by `format:`, and which columns are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.prompts.chats import looks_like_tools
from orchestrator.prompts.column_paths import has, root_of
from orchestrator.prompts.formats import CHOICES, FORMATS, RowFormat, get
from orchestrator.prompts.row_config import RowConfig
from orchestrator.prompts.templates import placeholders

NUM_FIRST = 32
"""Rows that are looked at before the layout is decided."""


@dataclass(frozen=True)
class Reading:
    """The way in which the rows of one source are read."""

    format: RowFormat
    prompt: str
    """Path of the question; not read where there is a template."""
    answer: str | None
    answer_required: bool
    tools: str | None
    system: str | None
    metadata: tuple[str, ...]
    """Paths that every row must have."""
    kept: tuple[str, ...]
    """Paths that are kept where a row has them."""
    text: str
    """All of this in words, with what is not used."""


def choose(config: RowConfig, rows: Sequence[Mapping[str, Any]]) -> Reading:
    """Decide how to read a data set.

    Args:
        config: settings; columns that it names are taken as named.
        rows: the first rows; none when all of them are unreadable.
    """
    columns = config.columns
    layout = _layout(config, rows)
    asks, answers = _asks(config, layout, rows), _answers(config, layout)
    prompt = _first(asks, rows) or asks[0]
    answer = _first(answers, rows) or (answers[0] if answers else None)
    tools = columns.tools
    if tools is not None and "tools" not in columns.model_fields_set:
        tools = tools if any(looks_like_tools(get(row, "tools")) for row in rows) else None
    system = columns.system
    if config.system is None and "system" not in columns.model_fields_set:
        system = _first(layout.systems, rows)
    kept = [path for path in layout.keeps if _first((path,), rows)]
    if layout.keeps_rest:
        roots = {root_of(p, row) for row in rows for p in (prompt, tools, system) if p is not None}
        kept += [c for c in _names(rows) if c not in roots and c not in kept]
    kept = [path for path in kept if path not in columns.metadata]
    reading = Reading(
        format=layout,
        prompt=prompt,
        answer=answer,
        # Configs of older runs name every column, the default one too, which those versions let be absent.
        answer_required="answer" in columns.model_fields_set and columns.answer != "answer",
        tools=tools,
        system=system,
        metadata=columns.metadata,
        kept=tuple(kept),
        text="",
    )
    text = _in_words(config, reading, rows)
    return Reading(**{**vars(reading), "text": text})


def _layout(config: RowConfig, rows: Sequence[Mapping[str, Any]]) -> RowFormat:
    if config.format != "auto":
        return next(layout for layout in FORMATS if layout.name == config.format)
    for layout in FORMATS:
        if config.template is not None and not layout.with_template:
            continue
        if config.columns.messages is not None and not layout.takes_chats:
            continue
        answers = _answers(config, layout)
        fitting = sum(layout.fits(row, _asks(config, layout, [row]), answers) for row in rows)
        # Most rows tell: one odd row must not decide for all, and is refused by what it lacks.
        if 2 * fitting > len(rows):
            return layout
    return FORMATS[-1]


def _asks(
    config: RowConfig, layout: RowFormat, rows: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    columns = config.columns
    if columns.messages is not None:
        return (columns.messages,)
    if "prompt" in columns.model_fields_set:
        return (columns.prompt,)
    if config.format == "auto" and any("prompt" in row for row in rows):
        return ("prompt",) if "prompt" in layout.asks else ("",)
    return layout.asks


def _answers(config: RowConfig, layout: RowFormat) -> tuple[str, ...]:
    if "answer" not in config.columns.model_fields_set:
        return layout.answers
    return () if config.columns.answer is None else (config.columns.answer,)


def _first(paths: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The first path that any row has."""
    return next((path for path in paths if any(has(row, path) for row in rows)), None)


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(name) for row in rows for name in row))


def _in_words(config: RowConfig, reading: Reading, rows: Sequence[Mapping[str, Any]]) -> str:
    layout = reading.format
    chosen = "as configured" if config.format != "auto" else "chosen from the first rows"
    asked = f"prompt from {reading.prompt}"
    used = [reading.prompt]
    if config.template is not None:
        used = placeholders(config.template)
        asked = f"prompt from the template ({', '.join(used)})"
    if layout.name == "multiple_choice":
        used += [c for c in CHOICES if any(c in row for row in rows)][:1]
        asked += f" and {used[-1]}"
    parts = [asked]
    answer = reading.answer
    if answer is not None and (reading.answer_required or _first((answer,), rows)):
        used.append(answer)
        parts.append(
            f"answer from {answer}" + (f" ({layout.other_answer})" * bool(layout.other_answer))
        )
    else:
        parts.append("no answer")
    for what, path in (("tools", reading.tools), ("system message", reading.system)):
        if path is not None:
            used.append(path)
            parts.append(f"{what} from {path}")
    kept = (*reading.metadata, *reading.kept)
    if kept:
        used += kept
        parts.append(f"metadata {', '.join(kept)}")
    if config.columns.id is not None:
        used.append(config.columns.id)
    used += layout.also_reads
    if config.template is not None and _by_position(reading, rows):
        parts.append(
            "answers look like positions of choices; format: multiple_choice gives letters"
        )
    unused = _unused(used, rows)
    if unused:
        parts.append(f"not used: {', '.join(unused)}")
    return f"format {layout.name} ({chosen}): {'; '.join(parts)}"


def _by_position(reading: Reading, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a template shows choices by its own words while the answers count them."""
    return reading.answer is not None and any(
        isinstance(get(row, reading.answer), int) and isinstance(row.get(column), list)
        for row in rows
        for column in CHOICES
    )


def _unused(used: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that nothing reads, and keys beside those that are read of a struct."""
    found: dict[str, None] = {}
    for row in rows:
        roots: dict[str, list[str]] = {}
        for path in used:
            roots.setdefault(root_of(path, row), []).append(path)
        for name, value in row.items():
            paths = roots.get(name)
            if paths is None:
                found[name] = None
            elif isinstance(value, Mapping) and name not in paths:
                found |= dict.fromkeys(
                    f"{name}.{key}"
                    for key in value
                    if not any(
                        p == f"{name}.{key}" or p.startswith((f"{name}.{key}.", f"{name}.{key}["))
                        for p in paths
                    )
                )
    return list(found)
