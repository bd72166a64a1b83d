"""Output of the command: what is printed where, errors as a short block on stderr, and exit codes."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from orchestrator.cli.surroundings import PASSING, as_refusal, check_current_folder
from orchestrator.flow.stopping import InterruptedRun
from policies.base.errors import (
    CORRUPT,
    FAILED,
    INTERRUPTED,
    TEMPORARY,
    ConfigurationError,
    InputError,
    PawlError,
    ResumeError,
    StorageError,
    explain,
)
from policies.storage.files import storage_error

if TYPE_CHECKING:
    from orchestrator.runs.folder import RunFolder

P = ParamSpec("P")

_BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN, errno.ENODEV})
"""What a disk answers that does not work now: it says nothing of what the file holds, whoever wanted to read it."""


def debugging() -> bool:
    """Tell whether tracebacks are wanted."""
    return os.environ.get("PAWL_DEBUG", "") not in ("", "0")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what escapes a command into a short block on stderr and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            check_current_folder()
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except (
            BrokenPipeError
        ):  # `pawl show ... | head`: nothing is lost; a run that stops for it has not ended well
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED if command.__name__ in ("run", "resume") else 0) from None
        except KeyboardInterrupt as stopped:
            complain("interrupted")
            raise typer.Exit(exit_code_of(stopped)) from None
        except Exception as error:
            if debugging():
                raise
            told = as_refusal(error)
            complain(_error_text(told))
            raise typer.Exit(exit_code_of(told)) from None
        finally:
            _let_go_of_what_nobody_takes()

    return run


def _let_go_of_what_nobody_takes() -> None:
    """Lead an output that cannot be written (a log on a full disk) to nowhere: Python would try again as it ends, print
    a traceback and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):  # there is none, or it is closed
            continue
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def exit_code_of(error: BaseException) -> int:
    """The exit code for what escaped a command: the one place where errors become numbers."""
    if isinstance(error, InterruptedRun):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    numbers = {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}
    if numbers & _BROKEN:
        return TEMPORARY
    if isinstance(error, PawlError) and error.exit_code != FAILED:
        return error.exit_code
    return TEMPORARY if numbers & PASSING else FAILED


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _error_text(error: Exception) -> str:
    """The block that is shown for an error."""
    if isinstance(error, OSError):
        told = storage_error(error, error.filename or "a file or the output of this command")
        error = error if told is None else told
    if isinstance(error, PawlError):
        return f"{_kind(error)}:\n{_indented(str(error))}"
    return f"internal error: {type(error).__name__}: {error}\n  PAWL_DEBUG=1 shows where; please report it."


def _kind(error: PawlError) -> str:
    kinds: list[tuple[type[PawlError], str]] = [
        (ConfigurationError, "refused (config)"),
        (InputError, "refused (input)"),
    ]
    if exit_code_of(error) == TEMPORARY:
        return f"stopped, worth another try ({type(error).__name__})"
    for kind, name in kinds:
        if isinstance(error, kind):
            return name
    if isinstance(error, ResumeError):
        return "refused (run folder)"
    if error.exit_code == CORRUPT:
        return f"refused (state of the run, {type(error).__name__})"
    return f"failed ({type(error).__name__})"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def complain(text: str) -> None:
    """A line or block on stderr. Where that cannot be written either, the exit code has to do."""
    from policies.base.plain_text import plain_text

    with contextlib.suppress(OSError):
        typer.echo(f"pawl: {plain_text(text)}", err=True)


def say(text: str) -> None:
    """A line or block on stdout.

    Raises:
        StorageError: what it leads to is full or broken.
    """
    try:
        typer.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(
            explain(
                "the output of this command could not be written",
                value=error.strerror,
                where="what its standard output leads to",
                fix="make room there, or lead it to another place, and give the command again",
            )
        ) from error


def say_json(value: Any) -> None:
    """JSON on stdout."""
    # ASCII only: no control or direction character of a model's text reaches the terminal.
    say(json.dumps(value, indent=2))


def console() -> Any:
    """Tell where tables go; model-made text is never read as markup."""
    from rich.console import Console

    # Elsewhere than on a terminal a table must not be folded to 80 columns.
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200)


def show_rounds(folder: RunFolder) -> None:
    """The table of a run by round."""
    from orchestrator.inspect.views.display import rounds_table
    from orchestrator.runs.reader import read_sound
    from orchestrator.runs.scores import final_line
    from orchestrator.runs.state import phase_seconds

    results = read_sound(folder).results()
    if results:
        console().print(rounds_table(results, phase_seconds(folder)))
        if line := final_line(results):
            console().print(line, markup=False, highlight=False)
