"""The command that proves a run whole: `pawl verify`. It writes nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.inspect import JsonOption, RunArgument
from orchestrator.cli.output import guarded, say, say_json
from policies.base.errors import CORRUPT

_NUM_NOTES = 5
"""Notes of one check that are printed."""


@guarded
def verify(
    run_dir: RunArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read every row back; takes longer.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove from the files that nothing of a run is lost, double or foreign; exit 3 names what is."""
    from orchestrator.inspect.audit.run import audit
    from orchestrator.runs.folder import open_run
    from policies.base.plain_text import one_line

    folder = open_run(run_dir)
    report = audit(folder, deep=deep)
    whole = not report.num_problems
    if as_json:
        say_json({"path": str(folder.path), "whole": whole, "checks": report.to_json()})
    else:
        for check in report:
            say(f"{check.verdict:<8} {check.name:<11} {check.num_examined:>8}  {check.claim}")
            for problem in check.problems:
                say(f"           {one_line(problem, 400)}")
            if check.num_problems > len(check.problems):
                say(f"           and {check.num_problems - len(check.problems)} more")
            for note in check.notes[:_NUM_NOTES]:
                say(f"           note: {one_line(note, 400)}")
            if len(check.notes) > _NUM_NOTES:
                say(f"           and {len(check.notes) - _NUM_NOTES} more notes (--json has them)")
        verdict = "is whole" if whole else f"has {report.num_problems} problems"
        say(f"{folder.path.name} {verdict}")
    if not whole:
        raise typer.Exit(CORRUPT)
