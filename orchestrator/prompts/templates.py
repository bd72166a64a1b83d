"""Text of a prompt from a template with placeholders: every one is filled from the row, or the row is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.prompts.column_paths import PATH, has, look_up
from orchestrator.prompts.row_values import RowError, listed
from policies.base.errors import InputError, explain

# One pass over the template: braces in the data are never looked at again.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_DOUBLED = re.compile(r"(?<!\{)\{\{\s*(" + PATH.pattern + r")\s*\}\}(?!\})")


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Put what a row holds into a template.

    `{column}`, `{column.key}` and `{column[0]}` are filled; `{{` and `}}` are braces, and so is what can be no
    placeholder: `{}`, `{2}` and the braces of a JSON object.

    Example:
        >>> fill("{question} {choices[0]} Answer in {{}}.", {"question": "1+{x}?", "choices": ["a"]})
        '1+{x}? a Answer in {}.'

    Raises:
        RowError: a placeholder names nothing of the row, or a brace stands alone.
    """

    def replace(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] is None:
            raise RowError(_alone(template, match.start()))
        if _is_literal(match[1]):
            return match[0]
        return _value(match[1].strip(), values)

    return _PLACEHOLDER.sub(replace, template)


def placeholders(template: str) -> list[str]:
    """The paths that a template names, in order."""
    found = (match[1] for match in _PLACEHOLDER.finditer(template))
    return [text.strip() for text in found if text is not None and not _is_literal(text)]


def check_template(template: str, rows: Sequence[Mapping[str, Any]], answer: str | None) -> None:
    """Refuse a template that makes every row the same prompt, leaves a column out by its braces, or tells the answer.

    Args:
        template: as configured.
        rows: the first rows.
        answer: the path of the ground truth.

    Raises:
        InputError: with the template that was probably meant.
    """
    doubled = [
        match
        for match in _DOUBLED.finditer(template)
        if any(has(row, match[1].strip()) for row in rows)
        and not _tells(match[1].strip(), answer, rows)
    ]
    if doubled:
        meant = _DOUBLED.sub(
            lambda m: "{" + m[1].strip() + "}" if m[0] in {d[0] for d in doubled} else m[0],
            template,
        )
        raise _refused(
            f"the template shows {doubled[0][0]} as text: doubled braces stand for braces",
            template,
            f"write {json.dumps(meant, ensure_ascii=False)}",
        )
    named = placeholders(template)
    if not named:
        columns = listed(rows[0]) if rows else "none"
        fit = [name for row in rows[:1] for name in row if not _tells(name, answer, rows)]
        example = "{" + (fit[0] if fit else "column") + "}"
        raise _refused(
            f"the template names no column, so every row would become the same prompt; columns here: {columns}",
            template,
            f"put at least one into it, e.g. {json.dumps(f'{template} {example}', ensure_ascii=False)}",
        )
    for path in named:
        if _tells(path, answer, rows):
            kept = template.replace("{" + path + "}", "{{" + path + "}}")
            raise _refused(
                f"the template shows {path!r} to the policy, which is the answer",
                template,
                f"leave it out; {json.dumps(kept, ensure_ascii=False)} shows the word in braces. If another column "
                "holds the truth, name it in columns.answer (null: there is none)",
            )


def _tells(path: str, answer: str | None, rows: Sequence[Mapping[str, Any]]) -> bool:
    if answer is None or not any(has(row, answer) for row in rows):
        return False
    return answer == path or answer.startswith((f"{path}.", f"{path}["))


def _is_literal(inside: str) -> bool:
    """Tell whether braces around this can be no placeholder: no letter in them, or the start of a JSON object."""
    bare = inside.strip()
    return not any(c.isalpha() or c == "_" for c in bare) or (bare[0] in "\"'" and ":" in bare)


def _value(path: str, values: Mapping[str, Any]) -> str:
    if path not in values and not PATH.fullmatch(path):
        raise RowError(
            f"the template has {{{path}}}, which is no column; placeholders are {{column}}, {{column.key}} and "
            f"{{column[0]}}, and {{{{{path}}}}} stands for the text in braces"
        )
    try:
        value = look_up(values, path)
    except RowError as error:
        raise RowError(f"the template names {path!r}: {error}") from None
    if value is None:
        raise RowError(
            f"the template names {path!r}, which is null here; columns here: {listed(values)}"
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _alone(template: str, at: int) -> str:
    around = template[max(0, at - 10) : at + 20]
    double = template[at] * 2
    return f"the template has a brace that belongs to no placeholder, at {around!r}; write {double} for a brace"


def _refused(what: str, template: str, fix: str) -> InputError:
    return InputError(explain(what, value=template, where="prompts.*.template", fix=fix))
