"""The `pawl` command. Imports nothing heavy: what a command needs is imported inside it.

Exit codes: 0 done; 1 failed; 2 refused (config, input or usage); 3 the state of a run is corrupt or foreign;
75 temporary, the same command may succeed later; 130 interrupted by Ctrl-C. 2 and 3 are not worth a retry.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.doctor import doctor
from orchestrator.cli.inspect import JsonOption, components, schema, show, status, trace, ui
from orchestrator.cli.output import complain, console, guarded, say, say_json
from orchestrator.cli.run import (
    ConfigArgument,
    NameOption,
    OverridesArgument,
    RunsDirOption,
    resume,
    run,
)
from orchestrator.cli.surroundings import open_streams
from orchestrator.cli.verify import verify
from policies.base.errors import REFUSED, ConfigurationError

app = typer.Typer(
    name="pawl",
    help="Iterative online self-improvement of language models: sample, verify, prefer, train, publish, repeat.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
def validate(
    config: ConfigArgument, overrides: OverridesArgument = None, as_json: JsonOption = False
) -> None:
    """Check a config and its prompt files without starting anything (see also `pawl plan`)."""
    from orchestrator.config.files import load_config
    from orchestrator.config.plug_ins.host import hosting
    from orchestrator.config.sections import PER_ROUND
    from orchestrator.plan.inputs import check_prompts
    from orchestrator.plan.lines import refuse_what_cannot_run
    from orchestrator.runs.stored_config import sealed

    try:
        with hosting():
            loaded = load_config(config, overrides or ())
            looked_at = check_prompts(loaded.config)
        refuse_what_cannot_run(looked_at)
    except ConfigurationError as error:
        if not as_json:
            raise
        say_json({"valid": False, "problems": str(error).splitlines()})
        raise typer.Exit(REFUSED) from None
    if as_json:
        found = [f"{line.what}: {line.found}" for line in looked_at.lines]
        say_json({"valid": True, "config": sealed(loaded.config), "prompts": found})
        return
    for line in looked_at.of("ok"):
        say(f"{line.what}: {line.found}")
    for line in looked_at.of("warning"):
        complain(f"warning: {line.what}: {line.found}")
    c = loaded.config
    drawn = c.prompts.per_round or f"up to {PER_ROUND}"
    judged = [v.source for v in c.verifiers] + [j.source for j in c.judges]
    say(
        f"{config} is valid: {c.rounds} rounds of {drawn} prompts x "
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

    from orchestrator.config.files import load_config, resolve_tracking
    from orchestrator.config.plug_ins.host import hosting
    from orchestrator.plan.preflight import make_plan
    from orchestrator.runs.naming import new_run_folder
    from orchestrator.storage.owner import taken_names
    from policies.base.plain_text import plain_text

    with hosting():
        resolved = resolve_tracking(load_config(config, overrides or ()).config, Path.cwd())
        taken = [] if elsewhere or name is not None else taken_names(resolved.storage)
        folder = new_run_folder(runs_dir, name, resolved.tracking.experiment, taken=taken)
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


for command in (run, resume):
    app.command()(command)
for reader in (status, show, trace, verify, doctor, components, schema, ui):
    app.command()(reader)


def main() -> None:
    """Entry point: `--debug` is taken wherever it stands."""
    open_streams()
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments.remove("--debug")
        os.environ["PAWL_DEBUG"] = "1"
    app(args=arguments, prog_name="pawl")
