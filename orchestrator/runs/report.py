"""The report of a run: one self-contained page and the same as Markdown, from the run folder alone.

Consumes: the journal, the clocks in the events, a few shards. Produces: `<run>/report.html` and
`<run>/report.md`. Model text is escaped: it can show, and not do, anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from orchestrator.runs.conversation_text import STYLE, Part, as_html, cut, is_conversation, parts_of
from orchestrator.runs.folder import RoundFolder, RunFolder
from orchestrator.runs.judge_columns import judge_columns
from orchestrator.runs.scores import final_line, pass_names
from orchestrator.runs.state import phase_seconds, read_config, results_of
from orchestrator.runs.stored_config import read_object
from orchestrator.runs.tables import (
    Row,
    example_table,
    examples,
    sample_table,
    samples,
)
from policies.base.errors import ArtifactError
from policies.base.plain_text import clean_text
from policies.base.records import RoundResult, Trajectory
from policies.storage.checksums import with_last_line
from policies.storage.files import write_text

MAIN_METRIC = "eval/pass@1"
COLUMNS = (
    "eval/score",
    "eval/pass@1_complete",
    "eval/truncated_share",
    "eval/length_tokens",
    "rollout/trajectories",
    "prefer/examples",
    "prefer/score",
    "rewards/accuracies",
    "rewards/margins",
    "kl",
    "train/loss",
)
"""Metrics that get a column of the table when any round has them; pass@k comes before them."""
CONVERSATION_COLUMNS = (
    "eval/outcome",
    "eval/turns",
    "eval/tool_calls",
    "rollout/tool_calls/failed",
)
"""The same for runs with tools or environments; a run of single turns has no use for them."""
SAMPLES = 8
"""Rows of each table of texts."""
MAX_CELL = 600
"""Characters of one text (of a conversation: of one turn) in the report; the shards have the rest."""

Cell = str | int | float | bool | tuple[Part, ...] | None
ReportRow = dict[str, Cell]

_WRITING = threading.Lock()
"""The driver and the tracking thread both write the report."""

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;
 color:#1b1f24;background:#fff}
h1{font-size:1.6rem;margin-bottom:0}h2{font-size:1.15rem;margin-top:2.2rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem}
th,td{padding:.35rem .7rem;border-bottom:1px solid #d5d9de;text-align:right;white-space:nowrap;
 vertical-align:top}
th{font-weight:600;background:#f3f5f7}td.text,th.text{text-align:left}
td.text{white-space:pre-wrap;overflow-wrap:anywhere;min-width:9rem;max-width:28rem}
.muted{color:#66707a}svg{max-width:100%;height:auto}
.line{fill:none;stroke:#2463b4;stroke-width:2}.bar{stroke:#2463b4}.dot{fill:#2463b4}.grid{stroke:#d5d9de}
svg text{font:12px system-ui,sans-serif;fill:#66707a}
@media (prefers-color-scheme:dark){body{color:#e2e6ea;background:#14171a}th{background:#20252a}
 th,td{border-color:#343b42}.grid{stroke:#343b42}.line,.bar{stroke:#7ab0f5}.dot{fill:#7ab0f5}}
"""


def write_report(folder: RunFolder) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into the run folder and return their paths.

    Raises:
        ResumeError: the journal cannot be read.
    """
    results, seconds = results_of(folder), phase_seconds(folder)
    table = _rounds_table(results, {r: sum(s.values()) for r, s in seconds.items()})
    texts = _texts(folder, results)
    title, owner = clean_text(folder.path.name), str(read_object(folder.identity).get("run_id"))
    experiment = clean_text(str((read_config(folder).get("tracking") or {}).get("experiment", "")))
    page = with_last_line(_page(title, experiment, results, table, texts), owner)
    html, markdown = folder.path / "report.html", folder.path / "report.md"
    text = with_last_line(_markdown(title, experiment, table, texts, final_line(results)), owner)
    with _WRITING:
        write_text(html, page)
        write_text(markdown, text)
    return html, markdown


def _rounds_table(results: Sequence[RoundResult], seconds: dict[int, float]) -> list[list[str]]:
    """Header and one line per round."""
    names = {name for result in results for name in result.metrics}
    passes = pass_names(dict.fromkeys(names, 0.0))
    wanted = [n for n in COLUMNS if n in names]
    if any(r.metrics.get("eval/turns", 1.0) > 1.0 or "eval/outcome" in r.metrics for r in results):
        wanted[:0] = [n for n in CONVERSATION_COLUMNS if n in names]
    columns = [*passes, *wanted, *(name for _, name in judge_columns(results))]
    table = [["round", "status", "policy", *columns, "seconds"]]
    for result in results:
        version = f"{result.before} → {result.after}" if result.round else str(result.after)
        values = [_value(result.metrics, name) for name in columns]
        clock = seconds.get(result.round)
        table.append(
            [
                str(result.round),
                result.status.value,
                version,
                *values,
                _number(clock and round(clock, 1)),
            ]
        )
    return table


def _value(metrics: Mapping[str, float], name: str) -> str:
    error = metrics.get(f"{name}_se")
    return _number(metrics.get(name)) + ("" if error is None else f" ± {error:.2g}")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def _texts(folder: RunFolder, results: Sequence[RoundResult]) -> list[tuple[str, list[ReportRow]]]:
    """Titled rows: what the last measured policy answers, and what the last update learned from."""
    found: list[tuple[str, list[ReportRow]]] = []
    for read, of_round, title in (
        (_answers, lambda r: folder.round(r).evaluation, "Held-out answers in round {}"),
        (_examples, folder.round, "Examples that round {} learned from"),
    ):
        for result in reversed(results):
            rows = _read(read, of_round(result.round))
            if rows:
                found.append((title.format(result.round), rows))
                break
    return found


def _read(read: Callable[[RoundFolder], list[ReportRow]], folder: RoundFolder) -> list[ReportRow]:
    """Rows for the report; a damaged shard costs its table, not the report."""
    try:
        return read(folder)
    except ArtifactError:
        return []


def _answers(folder: RoundFolder) -> list[ReportRow]:
    found = samples(folder, SAMPLES)
    rows = _only(sample_table(found), ("prompt", "completion", "score", "tokens"))
    for row, sample in zip(rows, found, strict=True):
        _tell(row, "completion", sample.trajectory)
    return rows


def _examples(folder: RoundFolder) -> list[ReportRow]:
    found = examples(folder, SAMPLES)
    table, left_out = example_table(found), ("id", "soft_label", "score", "weight")
    rows = _only(table, [name for name in (table[0] if table else ()) if name not in left_out])
    for row, shown in zip(rows, found, strict=True):
        for side, sequence in shown.example.sides().items():
            _tell(row, side, shown.trajectories.get(sequence.trajectory_id))
    return rows


def _tell(row: ReportRow, name: str, trajectory: Trajectory | None) -> None:
    """Put the turns of a conversation in the place of its text."""
    if trajectory is not None and is_conversation(trajectory):
        row[name] = parts_of(trajectory)


def _only(rows: Sequence[Row], names: Sequence[str]) -> list[ReportRow]:
    return [{name: row[name] for name in names if name in row} for row in rows]


def _page(
    title: str,
    experiment: str,
    results: Sequence[RoundResult],
    table: Sequence[Sequence[str]],
    texts: Sequence[tuple[str, list[ReportRow]]],
) -> str:
    points = [
        (r.round, r.metrics[MAIN_METRIC], r.metrics.get(f"{MAIN_METRIC}_se", 0.0))
        for r in results
        if MAIN_METRIC in r.metrics
    ]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title><style>{_STYLE}{STYLE}</style></head><body>",
        f'<h1>{escape(title)}</h1><p class="muted">experiment {escape(experiment)}, {_finished(len(results))}</p>',
    ]
    if points:
        parts += [
            "<h2>Held-out pass@1 by round, with one standard error</h2>",
            _curve(points),
        ]
    if last := final_line(results):
        parts.append(f"<p>{escape(last)}</p>")
    parts += ["<h2>Rounds</h2>", _html_table(table[0], table[1:], text_columns=(1, 2))]
    reasons = [
        f"<li>round {r.round}: {escape(clean_text(r.reason))}</li>" for r in results if r.reason
    ]
    if reasons:
        parts += ["<ul>", *reasons, "</ul>"]
    for heading, rows in texts:
        names = list(rows[0])
        lines = [[row.get(name) for name in names] for row in rows]
        text_columns = [i for i, n in enumerate(names) if isinstance(rows[0][n], str | tuple)]
        parts += [f"<h2>{escape(heading)}</h2>", _html_table(names, lines, text_columns)]
    return "\n".join([*parts, "</body></html>", ""])


def _finished(rounds: int) -> str:
    trained = max(rounds - 1, 0)
    return f"{trained} round{'' if trained == 1 else 's'} finished"


def _cell(value: Cell) -> str:
    """A plain value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return cut(value, MAX_CELL)
    return _number(value) if isinstance(value, int | float | None) else ""


def _html_table(
    header: Sequence[str], lines: Sequence[Sequence[Cell]], text_columns: Sequence[int]
) -> str:
    def row(cells: Sequence[Cell], tag: str) -> str:
        marked = (
            f"<{tag}{' class=text' if i in text_columns else ''}>{_html_cell(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(row(line, "td") for line in lines)
    return f'<div class="scroll"><table><thead>{row(header, "th")}</thead>\n<tbody>{body}</tbody></table></div>'


def _html_cell(value: Cell) -> str:
    return as_html(value, MAX_CELL) if isinstance(value, tuple) else escape(_cell(value))


def _curve(points: Sequence[tuple[int, float, float]]) -> str:
    """A line of values between 0 and 1 by round with bars of one standard error, as inline SVG."""
    width, height, left, right, top, bottom = 640, 240, 40, 610, 14, 206
    first, last = points[0][0], points[-1][0]

    def x(step: int) -> float:
        return left + (right - left) * (step - first) / max(last - first, 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * min(max(value, 0.0), 1.0)

    grid = [
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{left - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    every = max(1, -(-len(points) // 12))
    ticks = [
        f'<text x="{x(step):.1f}" y="{bottom + 20}" text-anchor="middle">{step}</text>'
        for step, _, _ in points[::every]
    ]
    path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v, _ in points)
    bars = [
        f'<line class="bar" x1="{x(s):.1f}" x2="{x(s):.1f}" y1="{y(v - e):.1f}" y2="{y(v + e):.1f}"/>'
        for s, v, e in points
        if e
    ]
    dots = [
        f'<circle class="dot" cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.5">'
        f"<title>round {s}: {v:.3f} ± {e:.3f}</title></circle>"
        for s, v, e in points
    ]
    label = escape(f"pass@1 from {points[0][1]:.3f} to {points[-1][1]:.3f}")
    inside = "".join([*grid, *ticks, f'<polyline class="line" points="{path}"/>', *bars, *dots])
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}">{inside}</svg>'


def _markdown(
    title: str,
    experiment: str,
    table: Sequence[Sequence[str]],
    texts: Sequence[tuple[str, list[ReportRow]]],
    last: str,
) -> str:
    parts = [
        f"# {_plain(title)}",
        f"Experiment {_plain(experiment)}, {_finished(len(table) - 1)}.",
        "## Rounds",
    ]
    parts += [_markdown_table(table[0], table[1:]), *([_plain(last)] if last else [])]
    for heading, rows in texts:
        names = list(rows[0])
        lines = [[row.get(name) for name in names] for row in rows]
        parts += [f"## {heading}", _markdown_table(names, lines)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[Cell]]) -> str:
    rows: list[Sequence[Cell]] = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in rows)


def _markdown_cell(value: Cell) -> str:
    """A conversation has its headings in bold: what a model writes cannot be, because its signs are escaped."""
    if not isinstance(value, tuple):
        return _plain(_cell(value))
    return "<br>".join(
        f"**{_plain(part.heading)}** {_plain(cut(clean_text(part.text), MAX_CELL))}"
        for part in value
    )


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no tags, links, images or table borders of a model's making."""
    escaped = escape(text, quote=False)
    for sign in "\\`*_[]|~":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped.replace("\r", " ").replace("\n", "<br>")
