"""Surroundings of a command: streams that are closed, a current folder that is gone, and what the system refuses.

None of these is a fault of ours: each is told as a refusal (exit 2), or as something that may pass (exit 75).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

from policies.base.errors import ConfigurationError, PawlError, StorageError, explain

PASSING = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN,
        errno.ENOLCK, errno.ESTALE, errno.ETXTBSY,
    }
)  # fmt: skip
"""What a machine answers that is short of something: the same command may succeed later."""
_REFUSING = frozenset(
    {
        errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EPERM,
        errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EILSEQ,
    }
)  # fmt: skip
"""What a machine answers about a name that cannot be used."""
_MODES = ((0, os.O_RDONLY, "stdin"), (1, os.O_WRONLY, "stdout"), (2, os.O_WRONLY, "stderr"))
_MAX_SHOWN = 200


def open_streams() -> None:
    """Give a closed standard stream (`>&-`) to `/dev/null`, and let no character end the command.

    Otherwise the next file that is opened, the journal for instance, gets its number, and what a library prints would
    be written into that.
    """
    for number, flags, name in _MODES:
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, flags)
            if descriptor != number:
                os.dup2(descriptor, number, inheritable=True)
                os.close(descriptor)
            else:
                os.set_inheritable(number, True)
        if vars(sys)[name] is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")


def check_current_folder() -> None:
    """Raises ConfigurationError when the folder in which the command was typed has been removed."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigurationError(
            explain(
                f"the current folder is gone ({error.strerror})",
                value=os.environ.get("PWD", "?"),
                where="the shell that this was typed in",
                fix="cd to a folder that exists, e.g. `cd ~`",
            )
        ) from None


def as_refusal(error: Exception) -> Exception:
    """An error of the surroundings in four parts; any other as it is."""
    if isinstance(error, PawlError):
        return error
    if isinstance(error, MemoryError):
        return _passing(
            "there is not enough memory",
            "this machine",
            "end other programs, or allow it more memory",
        )
    if isinstance(error, UnicodeEncodeError):
        shown = error.object[error.start : error.end].encode("utf-8", "backslashreplace").decode()
        return ConfigurationError(
            explain(
                "a text holds a character that cannot be written as UTF-8",
                value=shown[:_MAX_SHOWN],
                where="the command line, the environment or an input file",
                fix="write the character itself, in UTF-8",
            )
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return ConfigurationError(
            explain(
                "there is no home folder",
                value=os.environ.get("HOME", "HOME is not set"),
                where="HOME",
                fix="export HOME=/tmp (any folder of yours that exists)",
            )
        )
    return _of_system(error) if isinstance(error, OSError) else error


def _of_system(error: OSError) -> Exception:
    name = str(error.filename) if error.filename is not None else ""
    if error.errno == errno.ENOENT and "temporary directory" in str(error):
        what = "no folder for temporary files can be written to"
        return _passing(what, "TMPDIR", "export TMPDIR=/var/tmp, or make room in /tmp")
    if error.errno in PASSING:
        what = f"the machine is short of something ({error.strerror})"
        return _passing(what, name[:_MAX_SHOWN] or "this machine", "make room, or try again later")
    if name and error.errno in _REFUSING:
        return ConfigurationError(
            explain(
                f"the system refuses this file or folder ({error.strerror})",
                value=name[:_MAX_SHOWN],
                where="the command line, the config or the environment",
                fix="check the name and its permissions, or give another",
            )
        )
    return error


def _passing(what: str, where: str, fix: str) -> StorageError:
    return StorageError(f"{what} (got {where!r}). Set by: {where}. Fix: {fix}")
