"""The `pawl` command. Imports nothing heavy: what a command needs is imported inside it.

Exit codes: 0 done, 1 failed, 2 refused (config, input or usage), 130 interrupted and resumable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli_inspect import (
    JsonOption,
    RunArgument,
    components,
    schema,
    show,
    status,
    trace,
    ui,
)
from orchestrator.cli_output import (
    INTERRUPTED,
    REFUSED,
    complain,
    console,
    debugging,
    guarded,
    say,
    say_json,
    show_rounds,
)
from policies.errors import ConfigurationError, InputError, PawlError, ResumeError

if TYPE_CHECKING:
    from orchestrator.config import RunConfig
    from orchestrator.launch import RunSummary
    from orchestrator.run_folder import RunFolder

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
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", help="Folder of all runs.")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the run; default <experiment>-<number>.")
]


def _version(wanted: bool) -> None:
    if wanted:
        try:
            say(f"pawl {metadata.version('pawl-lm')}")
        except metadata.PackageNotFoundError:
            say("pawl (not installed: run from its source)")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks (also PAWL_DEBUG=1).")
    ] = False,
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
    from orchestrator.plan import make_plan
    from orchestrator.plan_lines import refuse_what_cannot_run
    from orchestrator.run_naming import new_run_folder

    loaded = load_config(config, overrides or ())
    resolved = resolve_tracking(loaded.config, Path.cwd())
    folder = new_run_folder(runs_dir, name, resolved.tracking.experiment)
    plan = make_plan(resolved, run_folder=folder.path)
    refuse_what_cannot_run(plan)
    for line in plan.of("warning"):
        complain(f"warning: {line.what}: {line.found}")
    say(f"run folder: {folder.path}")
    _drive(folder, _starter(resolved, folder, loaded.source))


def _starter(
    config: RunConfig, folder: RunFolder, source: str
) -> Callable[[list[Any]], RunSummary]:
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
        say(f"{folder.path} has finished all its rounds: there is nothing to resume")
        show_rounds(folder)
        return

    def start(observers: list[Any]) -> RunSummary:
        from orchestrator.launch import resume_experiment

        return resume_experiment(folder, observers)

    _drive(folder, start)


def _drive(folder: RunFolder, start: Callable[[list[Any]], RunSummary]) -> None:
    """Run or resume, with progress; then the table and what to type next."""
    from orchestrator.display import LiveProgress, observers_for, one_line
    from orchestrator.inspect_run import read_config

    _set_up_logging()
    observers = observers_for(console())
    try:
        summary = start(list(observers))
    except KeyboardInterrupt:
        complain(
            f"interrupted; nothing that finished is lost. Go on with: pawl resume {folder.path}"
        )
        raise typer.Exit(INTERRUPTED) from None
    except (ConfigurationError, InputError, ResumeError):
        raise
    except PawlError:
        if folder.identity.exists():
            complain(
                f"the run failed; what finished is kept. After the cause is gone: pawl resume {folder.path}"
            )
        raise
    finally:
        for observer in observers:
            if isinstance(observer, LiveProgress):
                observer.stop()
    say(one_line(summary.reason, 400))
    show_rounds(folder)
    tracked = (read_config(folder).get("tracking") or {}).get("enabled", True)
    for command in ("status", "show", "ui") if tracked else ("status", "show"):
        say(f"  pawl {command} {folder.path}")


def _set_up_logging() -> None:
    import logging

    logging.basicConfig(
        level=logging.DEBUG if debugging() else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # Warnings of the run are events already, and shown by the observer.
    logging.getLogger("orchestrator.events").setLevel(logging.ERROR)


@app.command()
@guarded
def validate(
    config: ConfigArgument, overrides: OverridesArgument = None, as_json: JsonOption = False
) -> None:
    """Check a config without starting anything (see also `pawl plan`)."""
    from orchestrator.config_files import load_config

    try:
        loaded = load_config(config, overrides or ())
    except ConfigurationError as error:
        if not as_json:
            raise
        say_json({"valid": False, "problems": str(error).splitlines()})
        raise typer.Exit(REFUSED) from None
    if as_json:
        say_json({"valid": True, "config": loaded.config.model_dump(mode="json")})
        return
    c = loaded.config
    judged = [v.source for v in c.verifiers] + [j.source for j in c.judges]
    say(
        f"{config} is valid: {c.rounds} rounds of {c.prompts.per_round} prompts x "
        f"{c.rollout.samples_per_prompt} samples, "
        f"scored by {', '.join(judged)}, {c.preferences.type} -> {c.training.loss.type}"
    )


@app.command()
@guarded
def plan(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
    elsewhere: Annotated[
        bool,
        typer.Option(
            "--elsewhere",
            help="For another machine: do not compare resources, ask for no download.",
        ),
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
        say_json(made.to_json())
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
        for line in made.lines:
            table.add_row(
                Text(line.verdict, styles[line.verdict]), line.what, Text(plain_text(line.found))
            )
        console().print(table)
        counts = f"{len(made.of('problem'))} problems, {len(made.of('warning'))} warnings"
        say(f"{config} {'fits' if made.fits else 'does not fit'}: {counts}")
    if not made.fits:
        raise typer.Exit(REFUSED)


for reader in (status, show, trace, components, schema, ui):
    app.command()(reader)


def main() -> None:
    """Entry point: `--debug` is taken wherever it stands."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments.remove("--debug")
        os.environ["PAWL_DEBUG"] = "1"
    app(args=arguments, prog_name="pawl")


if __name__ == "__main__":
    main()
