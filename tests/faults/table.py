"""The fault matrix: one row per fault, with what is broken, when, and what must come of it.

Whatever a row says, at its end the run is resumed until it is done, `pawl verify` proves it whole, and it is compared
with the same run in peace: same trajectories, verdicts and examples, same journal, none lost, none double.
"""

from __future__ import annotations

import errno

from tests.faults import inject_code as code
from tests.faults import inject_driver as driver
from tests.faults import inject_files as files
from tests.faults import inject_memory as memory
from tests.faults import inject_messages as messages
from tests.faults import inject_ray as ray
from tests.faults import inject_surroundings as around
from tests.faults import inject_workers as workers
from tests.faults.fault import WORK, Fault
from tests.faults.scene import PHASES

_ARITHMETIC_ERRORS = {"limits": {"max_failed_trajectories": 0.5, "max_verdict_errors": 1.0}}
_LONG_PROMPTS = {
    "rollout": {"engine": {"type": "fake", "max_context": 120, "seconds_per_call": 0.01}},
    "prompts": {"per_round": 26},
    **_ARITHMETIC_ERRORS,
}
_DIVERGING = {
    "training": {
        "engine": {"type": "fake", "diverge_in_round": 1, "seconds_per_step": 0.01},
    },
}
_WORSE = {
    "training": {"engine": {"type": "fake", "skill_step": -0.3, "seconds_per_step": 0.01}},
    "acceptance": {"type": "if_better"},
}

DRIVER = [
    Fault(
        "driver killed",
        PHASES,
        driver.killed,
        "resumes from the last finished shard",
    ),
    Fault("driver killed three times in a row", PHASES, driver.killed_again_and_again, "as once"),
    Fault(
        "driver killed at any change of a file", ("any",), driver.killed_at_an_operation, "as above"
    ),
    Fault(
        "driver killed before the run began",
        ("any",),
        driver.killed_before_it_began,
        "typed again, it starts",
    ),
    Fault(
        "driver killed while old rounds are removed",
        ("accept", "draw", "sync"),
        driver.killed,
        "removed in the end, nothing else",
        {"rounds": 3, "retention": {"policies": 1, "trajectories": 1}},
        short=False,
    ),
    Fault("SIGTERM", WORK, driver.stopped_by("SIGTERM", 75), "exit 75, resumes", short=False),
    Fault(
        "SIGTERM twice",
        WORK,
        driver.stopped_by("SIGTERM", 75, twice=True),
        "exit 75 at once, resumes",
        short=False,
    ),
    Fault("SIGINT", WORK, driver.stopped_by("SIGINT", 130), "exit 130, resumes"),
    Fault(
        "SIGUSR1 of a scheduler",
        WORK,
        driver.stopped_by("SIGUSR1", 75),
        "exit 75, resumes",
        short=False,
    ),
    Fault("terminal closed", WORK, driver.hung_up, "resumes", short=False),
    Fault(
        "nobody reads the output",
        ("any",),
        driver.nobody_reads,
        "finishes, or ends with a code above 0",
    ),
    Fault(
        "two drivers",
        ("collect", "train"),
        driver.two_drivers,
        "the second: exit 75, names the first",
    ),
    Fault(
        "driver suspended",
        ("collect", "train"),
        driver.suspended,
        "keeps its run, goes on later",
        short=False,
    ),
    Fault(
        "lease lost",
        ("collect", "train", "evaluate"),
        driver.lost_its_lease,
        "commits nothing more, exit 75",
    ),
    Fault(
        "process number used again",
        WORK,
        driver.pid_used_again,
        "the stale lease is taken over",
        short=False,
    ),
    Fault(
        "driver died on another host",
        ("collect", "train"),
        driver.died_elsewhere,
        "taken over after three missed heartbeats",
        short=False,
    ),
    Fault(
        "driver killed under a supervisor",
        WORK,
        driver.killed_under_a_supervisor,
        "restarted by itself",
    ),
]

FILES = [
    Fault(
        "trajectories flipped",
        ("collect",),
        files.damaged_shard("trajectories", files.flip),
        "set aside, redone",
    ),
    Fault(
        "trajectories cut off",
        ("collect",),
        files.damaged_shard("trajectories", files.cut_off),
        "redone",
        short=False,
    ),
    Fault(
        "verdicts flipped",
        ("collect",),
        files.damaged_shard("verdicts", files.flip),
        "set aside, redone",
        short=False,
    ),
    Fault(
        "examples flipped",
        ("collect", "train"),
        files.damaged_shard("examples", files.flip),
        "redone, not trained on",
    ),
    Fault(
        "feedback overwritten",
        ("collect",),
        files.damaged_shard("feedback", files.scribble),
        "redone",
        short=False,
    ),
    Fault(
        "prompts flipped",
        ("collect",),
        files.damaged_shard("prompts", files.flip),
        "redone",
        short=False,
    ),
    Fault(
        "held-out samples flipped",
        ("evaluate",),
        files.damaged_shard("evaluate/trajectories", files.flip),
        "redone",
        short=False,
    ),
    Fault(
        "marker overwritten",
        ("collect",),
        files.damaged_shard("verdicts", files.scribble, marker=True),
        "redone",
        short=False,
    ),
    Fault("marker lost", ("collect",), files.marker_lost, "redone", short=False),
    Fault("shard lost", ("collect",), files.file_lost, "redone"),
    Fault(
        "serving weights flipped",
        ("collect", "train"),
        files.beyond_repair(files.weights, files.flip, "model.safetensors"),
        "exit 3, file named",
    ),
    Fault(
        "serving weights lost",
        ("collect",),
        files.beyond_repair(files.weights, lambda p: p.unlink(), "0001"),
        "exit 3, version named",
        short=False,
    ),
    Fault(
        "starting model changed",
        ("collect",),
        files.beyond_repair(files.starting_model, files.flip, "starting model"),
        "exit 3",
        needs="model",
    ),
    Fault(
        "manifest overwritten",
        ("collect",),
        files.beyond_repair(files.manifest, files.scribble, "manifest"),
        "exit 3, file named",
        short=False,
    ),
    Fault(
        "journal spoilt in the middle",
        ("train",),
        files.beyond_repair(files.journal, files.spoil_a_line, "journal.jsonl"),
        "exit 3, line named",
    ),
    Fault(
        "run.json spoilt",
        ("train",),
        files.beyond_repair(files.identity, files.scribble, "run.json"),
        "exit 3",
        short=False,
    ),
    Fault(
        "journal torn at its end",
        ("collect", "train", "evaluate"),
        files.torn_journal,
        "the phase is done again",
    ),
    Fault("event log torn", WORK, files.torn_events, "ignored", short=False),
    Fault("foreign files", WORK, files.foreign_files, "ignored or cleaned"),
    Fault("half-published policy", ("publish", "train"), files.half_published, "published anew"),
    Fault(
        "files of the round deleted",
        ("collect",),
        files.removed_while_running,
        "redone",
        short=False,
    ),
    Fault(
        "disk full at any change", ("any",), files.storage_fails(errno.ENOSPC), "exit 75, resumes"
    ),
    Fault(
        "disk error at any change",
        ("any",),
        files.storage_fails(errno.EIO),
        "exit 75, resumes",
        short=False,
    ),
    Fault(
        "permission lost",
        ("any",),
        files.storage_fails(errno.EACCES),
        "exit 75, resumes",
        short=False,
    ),
    Fault("file size limit", ("any",), files.file_size_limit, "exit 75, resumes"),
    Fault(
        "real disk out of bytes",
        ("collect", "train", "evaluate"),
        files.disk_full,
        "exit 75, resumes",
        needs="mount",
    ),
    Fault(
        "real disk out of names",
        ("any",),
        files.names_used_up,
        "exit 75, resumes",
        needs="mount",
        short=False,
    ),
    Fault(
        "file system turns read-only",
        ("collect", "train"),
        files.read_only,
        "exit 75, resumes",
        needs="mount",
        short=False,
    ),
]

WORKERS = [
    Fault(
        "verifier ends its process",
        WORK,
        workers.misbehaving_verifier,
        "error verdicts, counted",
        {**workers.plugin("kills_itself"), **_ARITHMETIC_ERRORS},
        short=False,
    ),
    Fault(
        "verifier hangs",
        ("collect",),
        workers.misbehaving_verifier,
        "times out, counted",
        {**workers.plugin("hangs", 0.5), **_ARITHMETIC_ERRORS},
        short=False,
    ),
    Fault(
        "verifier raises SystemExit",
        WORK,
        workers.misbehaving_verifier,
        "error verdicts, counted",
        {**workers.plugin("raises"), **_ARITHMETIC_ERRORS},
        short=False,
    ),
    Fault(
        "verifier talks nonsense",
        WORK,
        workers.misbehaving_verifier,
        "error verdicts, counted",
        {**workers.plugin("talks_nonsense"), **_ARITHMETIC_ERRORS},
        short=False,
    ),
    Fault(
        "verifier killed from outside",
        ("collect", "evaluate"),
        workers.verifier_killed,
        "asked again, same verdicts",
        workers.plugin("slow"),
    ),
    Fault(
        "everything right",
        WORK[:1],
        workers.all_the_same,
        "rounds skipped, run ends with the reason",
        workers.plugin("always_right"),
        short=False,
    ),
    Fault(
        "everything wrong",
        WORK[:1],
        workers.all_the_same,
        "rounds skipped, run ends with the reason",
        workers.plugin("always_wrong"),
        short=False,
    ),
    Fault(
        "prompts too long for the engine",
        WORK,
        workers.prompts_too_long,
        "error trajectories, counted",
        _LONG_PROMPTS,
        needs="prompts",
        short=False,
    ),
    Fault(
        "loss becomes NaN",
        ("collect", "train", "evaluate"),
        workers.diverges,
        "round not published, run goes on",
        _DIVERGING,
    ),
    Fault(
        "worse policy",
        ("train", "publish", "sync", "evaluate", "accept"),
        workers.rolled_back,
        "rolled back",
        _WORSE,
    ),
]

FAULTS: tuple[Fault, ...] = (
    *DRIVER,
    *FILES,
    *WORKERS,
    *code.ROWS,
    *around.ROWS,
    *ray.ROWS,
    *messages.ROWS,
    *memory.ROWS,
)
