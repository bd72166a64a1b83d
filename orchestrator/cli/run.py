"""The commands that drive a run: `pawl run` and `pawl resume`, with or without a supervisor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.inspect import RunArgument
from orchestrator.cli.output import (
    complain,
    console,
    debugging,
    exit_code_of,
    guarded,
    say,
    show_rounds,
)
from policies.base.errors import REFUSED, TEMPORARY, ConfigurationError, PawlError, explain

if TYPE_CHECKING:
    from orchestrator.config.run_config import RunConfig
    from orchestrator.driver.launch import RunSummary
    from orchestrator.runs.folder import RunFolder

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
SuperviseOption = Annotated[
    bool,
    typer.Option("--supervise", help="Start the run again after a crash or a temporary failure."),
]
MaxRestartsOption = Annotated[
    int,
    typer.Option(
        "--max-restarts", min=0, help="Restarts in a row that may pass without a finished phase."
    ),
]
RestartWaitOption = Annotated[
    float,
    typer.Option(
        "--restart-wait", min=0, help="Seconds before a restart; doubles up to 300 seconds."
    ),
]


@guarded
def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    name: NameOption = None,
    runs_dir: RunsDirOption = Path("runs"),
    or_resume: Annotated[
        bool,
        typer.Option("--or-resume", help="Go on with the run called NAME if there is one already."),
    ] = False,
    supervise: SuperviseOption = False,
    max_restarts: MaxRestartsOption = 5,
    restart_wait: RestartWaitOption = 5.0,
) -> None:
    """Run an experiment: all rounds of CONFIG, into RUNS_DIR/NAME."""
    if or_resume and name is None:
        raise ConfigurationError("--or-resume needs to know which run. Fix: give --name too")
    if supervise:
        arguments = ["run", config, *(overrides or ()), "--runs-dir", str(runs_dir)]
        arguments += ["--name", name] if name is not None else []
        arguments += ["--or-resume"] if or_resume else []
        _supervise(arguments, max_restarts, restart_wait)
        return
    from orchestrator.config.files import load_config, resolve_tracking
    from orchestrator.config.plug_ins.host import hosting
    from orchestrator.plan.lines import refuse_what_cannot_run
    from orchestrator.plan.preflight import make_plan
    from orchestrator.runs.naming import give_back, new_run_folder, same_run, take
    from orchestrator.storage.owner import taken_names

    with hosting():
        loaded = load_config(config, overrides or ())
        resolved = resolve_tracking(loaded.config, Path.cwd())
        known = None
        if or_resume and name is not None:
            known = same_run(runs_dir, name, resolved) or _fetched(resolved, runs_dir, name)
        if known is None:
            taken = taken_names(resolved.storage) if name is None else []
            experiment = resolved.tracking.experiment
            folder = new_run_folder(runs_dir, name, experiment, taken=taken)
            plan = make_plan(resolved, run_folder=folder.path)
    if known is not None:
        _resume(known)
        return
    refuse_what_cannot_run(plan)
    for line in plan.of("warning"):
        complain(f"warning: {line.what}: {line.found}")
    folder = take(folder, automatic=name is None)
    say(f"run folder: {folder.path}")
    try:
        _drive(folder, _starter(resolved, folder, loaded.source, or_resume=or_resume))
    except BaseException:
        give_back(folder)  # does nothing where there is something in it
        raise


def _fetched(config: RunConfig, runs_dir: Path, name: str) -> RunFolder | None:
    """The run called `name`, brought here from the bucket that the config names; None when it is not there."""
    from functools import partial

    from orchestrator.runs.naming import check_same_config, same_run
    from orchestrator.storage.fetch import fetch_same_run

    place = f"{config.storage.url}/{name}"
    check = partial(check_same_config, config=config, where=place)
    found = fetch_same_run(config.storage, runs_dir, name, check=check, say=say)
    return same_run(runs_dir, name, config) if found else None


def _starter(
    config: RunConfig, folder: RunFolder, source: str, *, or_resume: bool
) -> Callable[[list[Any]], RunSummary]:
    def start(observers: list[Any]) -> RunSummary:
        from orchestrator.driver.launch import run_experiment

        return run_experiment(
            config, folder, source=source, observers=observers, or_resume=or_resume
        )

    return start


@guarded
def resume(
    run_dir: RunArgument,
    runs_dir: RunsDirOption = Path("runs"),
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="Take plug-ins that were edited since, from the round in progress on; this is recorded.",
        ),
    ] = False,
    supervise: SuperviseOption = False,
    max_restarts: MaxRestartsOption = 5,
    restart_wait: RestartWaitOption = 5.0,
) -> None:
    """Go on with an interrupted or failed run where it stopped; one at s3://... is fetched into RUNS_DIR first."""
    from orchestrator.runs.folder import open_run
    from orchestrator.storage.fetch import fetch_run, is_address

    if is_address(str(run_dir)):
        run_dir = fetch_run(str(run_dir), runs_dir, say=say).path

    if supervise:
        open_run(run_dir)
        if accept_changes:  # each restart would take whatever has changed until then
            raise ConfigurationError(
                explain(
                    "changes are accepted once, and --supervise starts the same command again and again",
                    value="--accept-changes --supervise",
                    where="the command line",
                    fix=f"give `pawl resume {run_dir} --accept-changes`, and supervise it later",
                )
            )
        _supervise(["resume", str(run_dir)], max_restarts, restart_wait)
        return
    unsent = _resume(open_run(run_dir), accept_changes=accept_changes)
    if unsent:
        raise typer.Exit(TEMPORARY)


def _resume(folder: RunFolder, *, accept_changes: bool = False) -> bool:
    """Go on with a run, or send what a finished one left unsent; says whether something of that is still left."""
    from orchestrator.runs.state import read_config, results_of, run_status

    planned = read_config(folder).get("rounds")
    done = results_of(folder)
    if run_status(folder)["state"] == "finished" and done and done[-1].round == planned:
        from orchestrator.driver.unsent import send_unsent

        say(f"{folder.path} has finished all its rounds: there is nothing to resume")
        sent = send_unsent(folder, on_warning=complain)
        for line in sent.lines(folder):
            (complain if sent.problems else say)(line)
        show_rounds(folder)
        return bool(sent.problems)

    def start(observers: list[Any]) -> RunSummary:
        from orchestrator.driver.launch import resume_experiment

        return resume_experiment(folder, observers, accept_changes=accept_changes)

    _drive(folder, start)
    return False


def _supervise(arguments: list[str], max_restarts: int, restart_wait: float) -> None:
    from orchestrator.driver.supervise import Supervisor, own_command

    def tell(text: str) -> None:
        complain(f"supervisor: {text}")

    code = Supervisor(
        own_command(), arguments, max_restarts=max_restarts, wait_seconds=restart_wait, tell=tell
    ).run()
    raise typer.Exit(code)


def _drive(folder: RunFolder, start: Callable[[list[Any]], RunSummary]) -> None:
    """Run or resume, with progress; then the table and what to type next."""
    from orchestrator.driver.supervise import obey_supervisor
    from orchestrator.flow.stopping import ending_at_once
    from orchestrator.inspect.views.display import LiveProgress, observers_for
    from orchestrator.runs.state import read_config
    from policies.base.plain_text import one_line

    _set_up_logging()
    observers = observers_for(console())
    try:
        with ending_at_once():
            obey_supervisor(folder.path)
            summary = start(list(observers))
    except KeyboardInterrupt as stopped:
        complain(
            f"interrupted; nothing that finished is lost. Go on with: pawl resume {folder.path}"
        )
        raise typer.Exit(exit_code_of(stopped)) from None
    except PawlError as error:
        if exit_code_of(error) != REFUSED and folder.identity.exists():
            complain(
                f"the run stopped; what finished is kept. After the cause is gone: pawl resume {folder.path} "
                f"(`pawl doctor {folder.path}` explains)"
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
    sys.stdout.flush()


def _set_up_logging() -> None:
    import logging

    logging.basicConfig(
        level=logging.DEBUG if debugging() else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # Warnings of the run are events already, and shown by the observer.
    logging.getLogger("orchestrator.runs.events").setLevel(logging.ERROR)
