"""The command that explains: `pawl doctor RUN_DIR|CONFIG`. It starts and changes nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.inspect import JsonOption
from orchestrator.cli.output import guarded, say, say_json
from policies.base.errors import FAILED


@guarded
def doctor(
    target: Annotated[
        str, typer.Argument(metavar="RUN_DIR|CONFIG", help="A run folder, or a config to try here.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of a config.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain a stuck or failed run, or why a config cannot run here; exit 1 when anything is wrong."""
    from orchestrator.inspect.doctor.diagnose import diagnose
    from policies.base.plain_text import one_line

    found = diagnose(target, overrides or ())
    if as_json:
        say_json(found.to_json())
    else:
        say(one_line(found.summary, 400))
        for finding in found.findings:
            say(f"{finding.severity}: {one_line(finding.what, 200)}")
            say(f"  seen: {one_line(finding.evidence, 1200)}")
            say(f"  fix:  {one_line(finding.fix, 400)}")
        if found.healthy:
            say("nothing is wrong")
    if not found.healthy:
        raise typer.Exit(FAILED)
