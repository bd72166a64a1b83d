"""Every exception that Pawl raises on purpose, and the one place where foreign exceptions are caught.

    PawlError
    |-- ConfigurationError (ValueError)   the config is wrong: refused before anything starts (exit 2)
    |-- InputError (ValueError)           a prompt file or a model directory is wrong (exit 2)
    |-- RolloutError                      an engine or a strategy failed
    |-- SandboxUnavailableError           model-written code cannot be contained on this machine
    |-- VerificationError                 a verifier failed; becomes an error verdict
    |   `-- JudgeError                    a judge failed or its answer cannot be read
    |-- TrainingError                     an update failed
    |   `-- DivergenceError               loss, gradients or weights are not finite
    |-- PolicyStoreError                  a policy cannot be published or does not match its manifest
    |-- ArtifactError                     a file of the run is missing, foreign or changed
    |-- StorageError                      the run folder cannot be written or read: full, read-only, failing (exit 75)
    |-- CorruptStateError (ResumeError)   a file that cannot be made again is damaged (exit 3)
    |   `-- CorruptPolicyError            published weights are damaged (also a PolicyStoreError)
    |-- WorkerLostError                   a worker process died; its call may or may not have run
    |   `-- CallNotStartedError           it died before it came to this call
    |-- ClusterLostError                  the Ray cluster does not answer any more (exit 75)
    |-- WaitTimeoutError                  a wait ended with nothing; the message names who waited for whom
    |   `-- PlacementError                a group has no worker and no node gives it one
    |-- LimitExceededError                too many failures in one round
    |-- ResumeError                       a run folder cannot be continued
    |   |-- RunNotFoundError              there is no run in the folder (exit 2)
    |   |-- PlugInChangedError            a plug-in is not what it was when the run began (exit 3)
    |   `-- LeaseError                    another driver has the run, or took it over (exit 75)
    `-- TrackingError                     the tracking server refused or did not answer

Each class carries the exit code of the command (see FAILED and the others below).
Rule: a bad trajectory is data, a bad config is refused, a bad update stops the round.
All of them carry one string, so they survive pickling between processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from policies.base.redaction import redact_secrets

FAILED, REFUSED, CORRUPT, TEMPORARY, INTERRUPTED = 1, 2, 3, 75, 130
"""Exit codes besides 0. Only after `TEMPORARY` (sysexits' EX_TEMPFAIL) is the same command worth repeating."""


class PawlError(Exception):
    """Base of everything that Pawl raises on purpose."""

    exit_code: ClassVar[int] = FAILED
    """What the command ends with when this reaches the user."""

    def __init__(self, *parts: object) -> None:
        # Here, because every message of ours passes: to the terminal, events, verdicts, other processes.
        super().__init__(*(redact_secrets(p) if isinstance(p, str) else p for p in parts))


class ConfigurationError(PawlError, ValueError):
    """The configuration is refused; nothing has been started or written."""

    exit_code = REFUSED


class InputError(PawlError, ValueError):
    """A data set or a model directory cannot be used as given."""

    exit_code = REFUSED


class RolloutError(PawlError):
    """An engine or a rollout strategy failed."""


class SandboxUnavailableError(PawlError):
    """Model-written code cannot be contained here, or a sandbox failed: our fault, never the policy's."""


class VerificationError(PawlError):
    """A verifier failed; the worker records it as an error verdict, never as score 0."""


class JudgeError(VerificationError):
    """A judge failed, timed out, or gave an answer that cannot be read."""


class TrainingError(PawlError):
    """A policy update failed."""


class DivergenceError(TrainingError):
    """A loss, a gradient or a weight became NaN or infinite."""


class PolicyStoreError(PawlError):
    """A policy version cannot be published, found, or does not match its manifest."""

    exit_code = CORRUPT


class ArtifactError(PawlError):
    """A file of the run is missing, truncated, foreign or changed since it was written."""

    exit_code = CORRUPT


class WorkerLostError(PawlError):
    """A worker process died; whether its last call took effect is unknown."""

    exit_code = TEMPORARY


class WorkerMemoryError(WorkerLostError):
    """A worker was ended because its node ran out of memory; a fresh one at once would be ended too."""


class CallNotStartedError(WorkerLostError):
    """A worker died with this call still in its queue: the call ran nowhere and did nothing."""


class ClusterLostError(PawlError):
    """The Ray cluster is gone or does not answer; everything that was committed is on disk."""

    exit_code = TEMPORARY


class WaitTimeoutError(PawlError):
    """A bounded wait ended without an answer."""

    exit_code = TEMPORARY


class PlacementError(WaitTimeoutError):
    """A group has no worker, and no node gave it one within the time and the restarts allowed."""


class LimitExceededError(PawlError):
    """More failures than the configured limits allow."""


class ResumeError(PawlError):
    """A run folder cannot be continued as it stands."""

    exit_code = CORRUPT


class RunNotFoundError(ResumeError):
    """The folder holds no run."""

    exit_code = REFUSED


class PlugInChangedError(ResumeError):
    """A plug-in is not made of what the run has had; nothing was decided with it."""

    exit_code = CORRUPT


class LeaseError(ResumeError):
    """Another process drives the run: it was found alive, or it has taken the run over from this one."""

    exit_code = TEMPORARY


class StorageError(PawlError):
    """The disk refused: it is full, read-only, over quota, or failing."""

    exit_code = TEMPORARY


class CorruptStateError(ResumeError):
    """A file that cannot be made again from what is before it is missing, changed or cannot be read."""

    exit_code = CORRUPT


class CorruptPolicyError(CorruptStateError, PolicyStoreError):
    """A published version is not what its manifest says."""


class TrackingError(PawlError):
    """The tracking store refused a write or did not answer in time."""


def explain(what: str, *, value: object, where: str, fix: str) -> str:
    """Return a message in four parts: what is wrong, the value, where it is set, what to do.

    Example:
        >>> explain("beta must be above 0", value=-1, where="training.loss.beta", fix="use 0.1")
        'beta must be above 0 (got -1). Set by: training.loss.beta. Fix: use 0.1'
    """
    return f"{what} (got {value!r}). Set by: {where}. Fix: {fix}"


@contextmanager
def boundary(error_class: type[PawlError], what: str) -> Iterator[None]:
    """Turn whatever escapes foreign code into `error_class`; our own errors pass unchanged.

    This is the only sanctioned broad `except` around plug-in code. `SystemExit` counts as a failure
    of the plug-in, `KeyboardInterrupt` does not.
    """
    try:
        yield
    except PawlError:
        raise
    except (Exception, SystemExit) as error:
        raise error_class(f"{what}: {type(error).__name__}: {error}") from error
