"""The commands that only look: status, show, trace, components, schema, ui. None of them writes to a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import guarded, say, say_json, show_rounds
from policies.base.errors import ConfigurationError, InputError, PawlError

if TYPE_CHECKING:
    from orchestrator.runs.folder import RunFolder

RunArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@guarded
def status(run_dir: RunArgument, as_json: JsonOption = False) -> None:
    """Show how far a run is, what its workers do now, and its metrics by round."""
    from orchestrator.runs.folder import open_run
    from orchestrator.runs.state import run_status
    from orchestrator.runs.worker_activity import activity_lines
    from policies.base.plain_text import one_line

    folder = open_run(run_dir)
    facts = run_status(folder)
    if as_json:
        say_json(facts)
        return
    say(
        f"{facts['name']}: {facts['state']}, experiment {one_line(facts['experiment'])}, {facts['path']}"
    )
    current = facts["current"]
    if current:
        say(
            f"  now: round {current['round']}, {current['phase'] or 'between phases'}, since "
            f"{current['since']}"
        )
    for line in activity_lines(facts["activity"]) if facts["activity"] else ():
        say(f"    {line}")
    for line in facts["damage"]:
        say(f"  damaged: {one_line(line, 400)}")
    if facts["message"]:
        say(f"  {one_line(facts['message'], 400)}")
    for change in facts["accepted_changes"]:
        say(f"  other plug-ins were accepted {one_line(change, 400)}")
    for warning in facts["warnings"][-5:]:
        say(f"  warning: {one_line(warning, 400)}")
    show_rounds(folder)
    if facts["state"] in ("interrupted", "failed"):
        say(f"  pawl resume {folder.path}")


@guarded
def show(
    run_dir: RunArgument,
    round_index: Annotated[
        int | None, typer.Option("--round", min=0, help="Which round; default the last.")
    ] = None,
    trajectories: Annotated[bool, typer.Option("--trajectories", help="Sampled attempts.")] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Training examples, with texts.")] = False,
    feedback: Annotated[bool, typer.Option("--feedback", help="Verdicts and scores.")] = False,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most records shown.")] = 10,
) -> None:
    """Show what a round holds: its summary, or its samples, pairs or feedback."""
    from orchestrator.inspect.views import text as inspect_view
    from orchestrator.runs.folder import open_run
    from orchestrator.runs.removal_notes import why_gone
    from orchestrator.runs.state import round_summary

    if trajectories + pairs + feedback > 1:
        raise ConfigurationError(
            "--trajectories, --pairs and --feedback exclude each other. Fix: give one of them"
        )
    folder = open_run(run_dir)
    begun = folder.rounds()
    if round_index is None and not begun:
        raise InputError(
            f"{folder.path} has no round yet. Fix: wait for round 0, or see `pawl status`"
        )
    index = _last_round(folder, begun) if round_index is None else round_index
    if not (trajectories or pairs or feedback):
        if as_json:
            say_json(round_summary(folder, index))
        else:
            say(inspect_view.summary_text(folder, index))
        return
    if trajectories:
        rows, text = (
            inspect_view.trajectories_view(folder, index, limit),
            inspect_view.trajectories_text,
        )
    elif pairs:
        rows, text = inspect_view.examples_view(folder, index, limit), inspect_view.examples_text
    else:
        rows, text = inspect_view.feedback_view(folder, index, limit), inspect_view.feedback_text
    if as_json:
        say_json(rows)
    else:
        none = f"round {index} has none" + (" (it only measures)" if index == 0 and pairs else "")
        say(text(rows) if rows else why_gone(folder, "round", index) or none)


@guarded
def trace(
    run_dir: RunArgument,
    wanted: Annotated[str, typer.Argument(metavar="ID", help="An example or a trajectory.")],
    as_json: JsonOption = False,
) -> None:
    """Follow an example or trajectory back to its prompt, verdicts and policy version."""
    from orchestrator.inspect.views.text import trace_text
    from orchestrator.inspect.views.trace import trace as trace_id
    from orchestrator.runs.folder import open_run

    facts = trace_id(open_run(run_dir), wanted)
    if as_json:
        say_json(facts)
    else:
        say(trace_text(facts))


@guarded
def components(
    family: Annotated[
        str | None, typer.Argument(metavar="[FAMILY]", help="e.g. verifier, loss.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Everything that a config can name by `type`, with its settings."""
    from orchestrator.config.component_list import list_components, listing_text

    found = list_components(family)
    if as_json:
        say_json(found)
    else:
        say(listing_text(found, settings=family is not None))


@guarded
def schema() -> None:
    """The JSON Schema of a config, for editors."""
    from orchestrator.config.json_schema import config_schema

    say_json(config_schema())


@guarded
def ui(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[RUN_DIR|CONFIG]", help="Whose store; default ./mlflow.db"),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")
    ] = 5000,
) -> None:
    """Show metrics in the browser: MLflow's server on the right store, for this machine only."""
    from orchestrator.config.tracking_uri import redact
    from orchestrator.tracking import server as tracking_server

    uri = tracking_server.store_uri(target, Path.cwd())
    if tracking_server.is_server(uri):
        say(f"the store is a server already: {redact(uri)}")
        return
    code = tracking_server.serve(uri, port, say)
    if code:
        raise PawlError(f"MLflow's server ended with code {code}; its own message is above")


def _last_round(folder: RunFolder, begun: Sequence[int]) -> int:
    """The newest round that the journal names: the one after it may only have been sampled ahead."""
    from orchestrator.runs.reader import read_entries

    named = [entry.round for entry in read_entries(folder)]
    return min(begun[-1], max(named, default=begun[-1]))
