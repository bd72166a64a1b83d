"""How the command speaks: what is printed where, errors as a short block on stderr, and exit codes."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from policies.errors import ConfigurationError, InputError, PawlError, ResumeError

if TYPE_CHECKING:
    from orchestrator.run_folder import RunFolder

P = ParamSpec("P")

REFUSED, FAILED, INTERRUPTED = 2, 1, 130


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
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if debugging():
                raise
            refused = isinstance(error, (ConfigurationError, InputError, ResumeError))
            complain(_error_text(error))
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
    return next(
        (name for kind, name in kinds if isinstance(error, kind)),
        f"failed ({type(error).__name__})",
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def complain(text: str) -> None:
    """A line or block on stderr."""
    from orchestrator.display import plain_text

    typer.echo(f"pawl: {plain_text(text)}", err=True)


def say(text: str) -> None:
    """A line or block on stdout."""
    typer.echo(text)


def say_json(value: Any) -> None:
    """JSON on stdout."""
    # ASCII only: no control or direction character of a model's text reaches the terminal.
    typer.echo(json.dumps(value, indent=2))


def console() -> Any:
    """Where tables go; model-made text is never read as markup."""
    from rich.console import Console

    # Elsewhere than on a terminal a table must not be folded to 80 columns.
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200)


def show_rounds(folder: RunFolder) -> None:
    """The table of a run by round."""
    from orchestrator.display import rounds_table
    from orchestrator.inspect_run import phase_seconds, results_of

    results = results_of(folder)
    if results:
        console().print(rounds_table(results, phase_seconds(folder)))
