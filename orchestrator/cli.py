"""The `pawl` command. Imports nothing heavy: what a command needs is imported inside it.

Exit codes: 0 done, 1 failed, 2 refused (config, input or usage), 130 interrupted and resumable.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from policies.errors import ConfigurationError, InputError, PawlError, ResumeError

if TYPE_CHECKING:
    from orchestrator.config import RunConfig
    from orchestrator.launch import RunSummary
    from orchestrator.run_folder import RunFolder

P = ParamSpec("P")

REFUSED, FAILED, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    name="pawl",
    help="Iterative online self-improvement of language models: sample, verify, prefer, train, publish, repeat.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. training.loss.beta=0.2"),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", help="Folder of all runs.")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the run; default <experiment>-<number>.")
]


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get("PAWL_DEBUG", "") not in ("", "0")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what escapes a command into a short block on stderr and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except BrokenPipeError:  # `pawl show ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if debugging():
                raise
            refused = isinstance(error, (ConfigurationError, InputError, ResumeError))
            _complain(_error_text(error))
            raise typer.Exit(REFUSED if refused else FAILED) from None

    return run


def _error_text(error: Exception) -> str:
    """The block that is shown for an error."""
    if isinstance(error, PawlError):
        return f"{_kind(error)}:\n{_indented(str(error))}"
    return f"internal error: {type(error).__name__}: {error}\n  PAWL_DEBUG=1 shows where; please report it."


def _kind(error: PawlError) -> str:
    kinds: list[tuple[type[PawlError], str]] = [
        (ConfigurationError, "refused (config)"),
        (InputError, "refused (input)"),
        (ResumeError, "refused (run folder)"),
    ]
    return next((name for kind, name in kinds if isinstance(error, kind)), f"failed ({type(error).__name__})")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _complain(text: str) -> None:
    from orchestrator.display import plain_text

    print(f"pawl: {plain_text(text)}", file=sys.stderr)


def _say(text: str) -> None:
    print(text)


def _json(value: Any) -> None:
    # ASCII only: no control or direction character of a model's text reaches the terminal.
    print(json.dumps(value, indent=2, allow_nan=True))


def _version(wanted: bool) -> None:
    if wanted:
        try:
            _say(f"pawl {metadata.version('pawl-lm')}")
        except metadata.PackageNotFoundError:
            _say("pawl (not installed: run from its source)")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (also PAWL_DEBUG=1).")] = False,
) -> None:
    """Iterative online self-improvement of language models."""
    if debug:
        os.environ["PAWL_DEBUG"] = "1"


@app.command()
@guarded
def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    name: NameOption = None,
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Run an experiment: all rounds of CONFIG, into RUNS_DIR/NAME."""
    from orchestrator.config_files import load_config, resolve_tracking
    from orchestrator.plan import make_plan, refuse_what_cannot_run
    from orchestrator.run_naming import new_run_folder

    loaded = load_config(config, overrides or ())
    resolved = resolve_tracking(loaded.config, Path.cwd())
    folder = new_run_folder(runs_dir, name, resolved.tracking.experiment)
    plan = make_plan(resolved, run_folder=folder.path)
    refuse_what_cannot_run(plan)
    for line in plan.of("warning"):
        _complain(f"warning: {line.what}: {line.found}")
    _say(f"run folder: {folder.path}")
    _drive(folder, _starter(resolved, folder, loaded.source))


def _starter(config: RunConfig, folder: RunFolder, source: str) -> Callable[[list[Any]], RunSummary]:
    def start(observers: list[Any]) -> RunSummary:
        from orchestrator.launch import run_experiment

        return run_experiment(config, folder, source=source, observers=observers)

    return start


@app.command()
@guarded
def resume(run_dir: RunArgument) -> None:
    """Go on with an interrupted or failed run where it stopped."""
    from orchestrator.inspect_run import read_config, results_of, run_status
    from orchestrator.run_folder import open_run

    folder = open_run(run_dir)
    planned = read_config(folder).get("rounds")
    done = results_of(folder)
    if run_status(folder)["state"] == "finished" and done and done[-1].round == planned:
        _say(f"{folder.path} has finished all its rounds: there is nothing to resume")
        _show_rounds(folder)
        return

    def start(observers: list[Any]) -> RunSummary:
        from orchestrator.launch import resume_experiment

        return resume_experiment(folder, observers)

    _drive(folder, start)


def _drive(folder: RunFolder, start: Callable[[list[Any]], RunSummary]) -> None:
    """Run or resume, with progress; then the table and what to type next."""
    from orchestrator.display import LiveProgress, observers_for, one_line

    _set_up_logging()
    observers = observers_for(_console())
    try:
        summary = start(list(observers))
    except KeyboardInterrupt:
        _complain(f"interrupted; nothing that finished is lost. Go on with: pawl resume {folder.path}")
        raise typer.Exit(INTERRUPTED) from None
    except (ConfigurationError, InputError, ResumeError):
        raise
    except PawlError:
        if folder.identity.exists():
            _complain(f"the run failed; what finished is kept. After the cause is gone: pawl resume {folder.path}")
        raise
    finally:
        for observer in observers:
            if isinstance(observer, LiveProgress):
                observer.stop()
    _say(one_line(summary.reason, 400))
    _show_rounds(folder)
    for command in ("status", "show", "ui"):
        _say(f"  pawl {command} {folder.path}")


def _set_up_logging() -> None:
    import logging

    logging.basicConfig(
        level=logging.DEBUG if debugging() else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # Warnings of the run are events already, and shown by the observer.
    logging.getLogger("orchestrator.events").setLevel(logging.ERROR)


def _console() -> Any:
    from rich.console import Console

    # Elsewhere than on a terminal a table must not be folded to 80 columns.
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200)


def _show_rounds(folder: RunFolder) -> None:
    from orchestrator.display import rounds_table
    from orchestrator.inspect_run import phase_seconds, results_of

    results = results_of(folder)
    if results:
        _console().print(rounds_table(results, phase_seconds(folder)))


@app.command()
@guarded
def validate(config: ConfigArgument, overrides: OverridesArgument = None, as_json: JsonOption = False) -> None:
    """Check a config without starting anything (see also `pawl plan`)."""
    from orchestrator.config_files import load_config

    try:
        loaded = load_config(config, overrides or ())
    except ConfigurationError as error:
        if not as_json:
            raise
        _json({"valid": False, "problems": str(error).splitlines()})
        raise typer.Exit(REFUSED) from None
    if as_json:
        _json({"valid": True, "config": loaded.config.model_dump(mode="json")})
        return
    c = loaded.config
    judged = [v.source for v in c.verifiers] + [j.source for j in c.judges]
    _say(
        f"{config} is valid: {c.rounds} rounds of {c.prompts.per_round} prompts x {c.rollout.samples_per_prompt} samples, "
        f"scored by {', '.join(judged)}, {c.preferences.type} -> {c.training.loss.type}"
    )


@app.command()
@guarded
def plan(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="For another machine: do not compare resources, ask for no download.")
    ] = False,
    name: NameOption = None,
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Preflight: what would run where, whether it fits, what it would write."""
    from rich.table import Table
    from rich.text import Text

    from orchestrator.config_files import load_config, resolve_tracking
    from orchestrator.display import plain_text
    from orchestrator.plan import make_plan
    from orchestrator.run_naming import new_run_folder

    resolved = resolve_tracking(load_config(config, overrides or ()).config, Path.cwd())
    folder = new_run_folder(runs_dir, name, resolved.tracking.experiment)
    made = make_plan(resolved, run_folder=folder.path, elsewhere=elsewhere)
    if as_json:
        _json(made.to_json())
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
        for line in made.lines:
            table.add_row(
                Text(line.verdict, styles[line.verdict]), line.what, Text(plain_text(line.found))
            )
        _console().print(table)
        counts = f"{len(made.of('problem'))} problems, {len(made.of('warning'))} warnings"
        _say(f"{config} {'fits' if made.fits else 'does not fit'}: {counts}")
    if not made.fits:
        raise typer.Exit(REFUSED)


@app.command()
@guarded
def status(run_dir: RunArgument, as_json: JsonOption = False) -> None:
    """How far a run is, and its metrics by round."""
    from orchestrator.display import one_line
    from orchestrator.inspect_run import run_status
    from orchestrator.run_folder import open_run

    folder = open_run(run_dir)
    facts = run_status(folder)
    if as_json:
        _json(facts)
        return
    _say(f"{facts['name']}: {facts['state']}, experiment {one_line(facts['experiment'])}, {facts['path']}")
    current = facts["current"]
    if current:
        _say(f"  now: round {current['round']}, {current['phase'] or 'between phases'}, since {current['since']}")
    if facts["message"]:
        _say(f"  {one_line(facts['message'], 400)}")
    for warning in facts["warnings"][-5:]:
        _say(f"  warning: {one_line(warning, 400)}")
    _show_rounds(folder)
    if facts["state"] in ("interrupted", "failed"):
        _say(f"  pawl resume {folder.path}")


@app.command()
@guarded
def show(
    run_dir: RunArgument,
    round_index: Annotated[int | None, typer.Option("--round", min=0, help="Which round; default the last.")] = None,
    trajectories: Annotated[bool, typer.Option("--trajectories", help="Sampled attempts.")] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Training examples, with texts.")] = False,
    feedback: Annotated[bool, typer.Option("--feedback", help="Verdicts and scores.")] = False,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most records shown.")] = 10,
) -> None:
    """What a round holds: its summary, or its samples, pairs or feedback."""
    from orchestrator import inspect_view
    from orchestrator.inspect_run import round_summary
    from orchestrator.run_folder import open_run

    if trajectories + pairs + feedback > 1:
        raise ConfigurationError("--trajectories, --pairs and --feedback exclude each other. Fix: give one of them")
    folder = open_run(run_dir)
    begun = folder.rounds()
    if round_index is None and not begun:
        raise InputError(f"{folder.path} has no round yet. Fix: wait for round 0, or see `pawl status`")
    index = begun[-1] if round_index is None else round_index
    if not (trajectories or pairs or feedback):
        if as_json:
            _json(round_summary(folder, index))
        else:
            _say(inspect_view.summary_text(folder, index))
        return
    if trajectories:
        rows, text = inspect_view.trajectories_view(folder, index, limit), inspect_view.trajectories_text
    elif pairs:
        rows, text = inspect_view.examples_view(folder, index, limit), inspect_view.examples_text
    else:
        rows, text = inspect_view.feedback_view(folder, index, limit), inspect_view.feedback_text
    if as_json:
        _json(rows)
    else:
        _say(text(rows) if rows else f"round {index} has none" + (" (it only measures)" if index == 0 and pairs else ""))


@app.command()
@guarded
def trace(
    run_dir: RunArgument,
    wanted: Annotated[str, typer.Argument(metavar="ID", help="An example or a trajectory.")],
    as_json: JsonOption = False,
) -> None:
    """Follow an example or trajectory back to its prompt, verdicts and policy version."""
    from orchestrator.inspect_view import trace_text
    from orchestrator.run_folder import open_run
    from orchestrator.trace import trace as trace_id

    facts = trace_id(open_run(run_dir), wanted)
    if as_json:
        _json(facts)
    else:
        _say(trace_text(facts))


@app.command()
@guarded
def components(
    family: Annotated[str | None, typer.Argument(metavar="[FAMILY]", help="e.g. verifier, loss.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Everything that a config can name by `type`, with its settings."""
    from orchestrator.component_list import list_components, listing_text

    found = list_components(family)
    if as_json:
        _json(found)
    else:
        _say(listing_text(found, settings=family is not None))


@app.command()
@guarded
def schema() -> None:
    """The JSON Schema of a config, for editors."""
    from orchestrator.schema import config_schema

    _json(config_schema())


@app.command()
@guarded
def ui(
    target: Annotated[str | None, typer.Argument(metavar="[RUN_DIR|CONFIG]", help="Whose store; default ./mlflow.db")] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Show metrics in the browser: MLflow's server on the right store, for this machine only."""
    from orchestrator import tracking_server
    from orchestrator.tracking_uri import redact

    uri = tracking_server.store_uri(target, Path.cwd())
    if tracking_server.is_server(uri):
        _say(f"the store is a server already: {redact(uri)}")
        return
    code = tracking_server.serve(uri, port, _say_now)
    if code:
        raise PawlError(f"MLflow's server ended with code {code}; its own message is above")


def _say_now(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Entry point: `--debug` is taken wherever it stands."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments.remove("--debug")
        os.environ["PAWL_DEBUG"] = "1"
    app(args=arguments, prog_name="pawl")


if __name__ == "__main__":
    main()
