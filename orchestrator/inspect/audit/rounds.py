"""One round of an audited run: every shard, and what the shards add up to, against the journal."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from orchestrator.config.run_config import RunConfig
from orchestrator.inspect.audit.check import Report
from orchestrator.inspect.audit.shards import ShardAudit, Totals, read_checked_marker
from orchestrator.rounds.source_counts import count_sources
from orchestrator.runs.folder import SHARD_KINDS, RoundFolder
from orchestrator.runs.journal import JournalEntry
from orchestrator.runs.phases import Collected, Drawn, Evaluated, Phase, Remeasured
from orchestrator.runs.samplers import earlier_version, sampling_version
from policies.base.records import Record, RoundResult
from policies.storage.artifacts import marker_path
from policies.storage.folder_names import is_leftover_of_others, numbered, shown
from policies.storage.policy_store import Manifest

R = TypeVar("R", bound=Record)

_DATA = re.compile(r"(prompts|shard-\d+)\.parquet(\.json)?")
"""Names of data and markers; others are nobody's."""


class RoundAudit:
    """The samples of one round and its held-out measurement."""

    def __init__(
        self,
        folder: RoundFolder,
        index: int,
        of_round: Mapping[Phase, JournalEntry],
        config: RunConfig | None,
        manifests: Mapping[int, Manifest],
        report: Report,
        *,
        measured: Mapping[str, str],
        was_removed: bool,
        absent: frozenset[str],
        deep: bool,
    ) -> None:
        """Take a round, the digests of the prompt sets that round 0 recorded (`held_out`, `test`), whether retention
        removed it, and the files of the run that were left in a bucket.
        """
        self.folder, self.index, self.config = folder, index, config
        self.manifests, self.report, self.deep = manifests, report, deep
        self.of_round = of_round
        self.measured = measured
        here = f"rounds/{folder.path.name}/"
        self.absent = {
            name.removeprefix(here)
            for name in absent
            if name.startswith(here) and not (folder.path / name.removeprefix(here)).exists()
        }
        self.was_removed = was_removed or any(n.endswith(".parquet") for n in self.absent)

    def run(self, served: Mapping[int, int]) -> None:
        """Check everything that the round has written so far.

        Args:
            served: the version that each finished round left.
        """
        collected = evaluated = None
        if not self.was_removed:
            collected = self._result(Phase.COLLECT, Collected)
            evaluated = self._result(Phase.EVALUATE, Evaluated)
        config = self.config
        if self.index > 0:
            samples = config.total_samples_of(self.index) if config else None
            totals = self._shards(self.folder, samples, collected.digests if collected else {})
            drawn = self._result(Phase.DRAW, Drawn)
            self._check_draw(self.folder, totals, drawn.digest if drawn else None)
            if collected is not None:
                self._check_collected(collected, totals)
            self._check_samplers(totals, self._samplers(served))
        samples = config.evaluation.samples_per_prompt if config else None
        self._check_measurement(self.folder.evaluation, samples, evaluated, "held_out")
        self._check_further_measurements(samples)
        if Phase.ACCEPT in self.of_round:
            self._check_leftovers()

    def _check_further_measurements(self, samples: int | None) -> None:
        """Check what was measured in the round besides its candidate, as far as it has come."""
        found: dict[str, Evaluated] = {}
        for phase in (Phase.COMPARE, Phase.FINAL):
            entry = None if self.was_removed else self._result(phase, Remeasured)
            found |= {} if entry is None else entry.measurements
        there = [f.path.name for f in self.folder.measurements()[1:]]
        for name in sorted({*there, *found}):
            prompts = "test" if name == "test" else "held_out"
            folder = self.folder.measurement(name)
            self._check_measurement(folder, samples, found.get(name), prompts)

    def _check_measurement(
        self, folder: RoundFolder, samples: int | None, known: Evaluated | None, prompts: str
    ) -> None:
        totals = self._shards(folder, samples, known.digests if known else {})
        self._check_draw(folder, totals, self.measured.get(prompts))
        if known is not None:
            self._check_samplers(totals, {known.version})

    def _result(self, phase: Phase, kind: type[R]) -> R | None:
        entry = self.of_round.get(phase)
        return None if entry is None else kind.model_validate(entry.result)

    def _shards(
        self, folder: RoundFolder, samples: int | None, digests: Mapping[str, str]
    ) -> Totals:
        """Audit every shard of `folder`; `digests` names what a finished phase must have."""
        totals = Totals()
        indices = sorted(_indices(folder))
        for index in indices:
            there = ShardAudit(
                folder.shard(index), self.report, totals, samples=samples, deep=self.deep
            ).run()
            missing = sorted(set(digests) - there)
            if digests:
                self.report["complete"].expect(
                    not missing, f"{folder.path}: shard {index} has no {', '.join(missing)}"
                )
        for kind, digest in sorted(digests.items()):
            have = hashlib.sha256("".join(totals.digests.get(kind, [])).encode()).hexdigest()
            self.report["digests"].expect(
                have == digest, f"{folder.path / kind} is not what the journal recorded"
            )
        for kind, states in sorted(totals.plug_ins.items()) if digests else ():
            self.report["plug-ins"].expect(
                len(states) == 1,
                f"{folder.path / kind}: its shards were made with {len(states)} different states of the plug-ins",
            )
        for kind, keys in sorted(totals.keys.items()):
            repeated = keys.num_repeated()
            self.report["ids"].expect(
                not repeated, f"{folder.path / kind} has {repeated} of {len(keys)} ids twice"
            )
        return totals

    def _check_draw(self, folder: RoundFolder, totals: Totals, recorded: str | None) -> None:
        drawn = self._result(Phase.DRAW, Drawn)
        if drawn is None or folder.prompts.relative_to(self.folder.path).as_posix() in self.absent:
            return
        whole = read_checked_marker(folder.prompts, self.report, deep=self.deep)
        if not self.report["complete"].expect(
            whole is not None, f"{folder.prompts} is missing or not whole"
        ):
            return
        assert whole is not None
        self.report["digests"].expect(
            whole.content_digest == recorded, f"{folder.prompts} is not what the journal recorded"
        )
        rows = totals.rows["prompts"]
        self.report["counts"].expect(
            rows == whole.num_rows,
            f"{folder.path}: the shards have {rows} prompts, the round drew {whole.num_rows}",
        )

    def _check_collected(self, collected: Collected, totals: Totals) -> None:
        counts, rows = collected.counts, totals.rows
        expected: dict[str, tuple[float, float]] = {
            "num_trajectories": (collected.num_trajectories, rows["trajectories"]),
            "num_examples": (collected.num_examples, rows["examples"]),
            "rollout/trajectories": (counts.get("rollout/trajectories", 0), rows["trajectories"]),
            "rollout/errors": (counts.get("rollout/errors", 0), totals.errors),
            "prefer/trajectories": (counts.get("prefer/trajectories", 0), rows["feedback"]),
            "prefer/examples": (counts.get("prefer/examples", 0), rows["examples"]),
        }
        names = {"desirable": True, "undesirable": False, "unusable": None}
        for name, bit in names.items():
            have = totals.desirable[bit]
            expected[f"prefer/{name}"] = (counts.get(f"prefer/{name}", 0), have)
        for source in count_sources(counts):
            if source.stage == "verify":
                by_status = [totals.verdicts[source.source, s] for s in ("scored", "error")]
                expected[f"{source.source}/scored"] = (source.scored, by_status[0])
                expected[f"{source.source}/errors"] = (source.errors, by_status[1])
        for name, (recorded, found) in expected.items():
            self.report["counts"].expect(
                recorded == found,
                f"{self.folder.path}: the journal has {name} {recorded:g}, the files {found:g}",
            )
        rest = rows["trajectories"] - sum(totals.desirable.values())
        self.report["counts"].expect(
            not rest, f"{self.folder.path}: {rest} trajectories have no feedback"
        )

    def _samplers(self, served: Mapping[int, int]) -> set[int]:
        """Versions that may have sampled the round: the serving one, and those of a mixture."""
        before = [served[i] for i in range(self.index) if i in served]
        if not before:
            return {0}
        shares = self.config.stage_of(self.index).earlier if self.config else ()
        config = self.config
        earlier = (
            {earlier_version(config, before, self.index, s.rounds_ago) for s in shares}
            if config
            else set[int]()
        )
        if self.config is not None:
            return {sampling_version(self.config, before, self.index)} | earlier
        result = self._result(Phase.ACCEPT, RoundResult)
        return {before[-1] if result is None else result.before} | earlier

    def _check_samplers(self, totals: Totals, possible: set[int]) -> None:
        foreign = {v: n for v, n in totals.by_version.items() if v not in possible}
        self.report["samplers"].expect(
            not foreign,
            f"round {self.index} has trajectories by version {sorted(foreign)} "
            f"({sum(foreign.values())} of them); only {sorted(possible)} sampled it",
        )
        for (version, digest), count in totals.by_digest.items():
            manifest = self.manifests.get(version)
            self.report["samplers"].expect(
                manifest is None or manifest.digest == digest,
                f"round {self.index}: {count} trajectories say that version {version} has digest "
                f"{digest[:12]}, its manifest says {manifest.digest[:12] if manifest else ''}",
            )

    def _check_leftovers(self) -> None:
        """Data without a marker in its final place is a fault; attempts and temporaries only wait for a resume."""
        check = self.report["committed"]
        for path in _files(self.folder.path):
            inside = path.relative_to(self.folder.path).parts
            if "attempts" in inside or path.name.endswith(".tmp"):
                check.notes.append(f"{shown(path)} was left behind; a resume removes it")
            elif not _DATA.fullmatch(path.name):
                continue
            elif _is_foreign(path):
                check.notes.append(f"{shown(path)} is not of this run: nothing reads it")
            elif path.suffix == ".parquet":
                check.expect(marker_path(path).is_file(), f"{path} has no marker")
            else:
                check.expect(path.with_suffix("").is_file(), f"{path} has no file")
        check.expect(
            not self.folder.candidate.exists(),
            f"{self.folder.candidate} is in a finished round: it was neither published nor removed",
        )


def _indices(folder: RoundFolder) -> set[int]:
    """Shards of which any file is there."""
    return {index for kind in (*SHARD_KINDS, "prompts") for index in folder.indices(kind)}


def _is_foreign(path: Path) -> bool:
    """Tell a file of a round that was left by others: by its name, or as a shard that the run would call otherwise."""
    if is_leftover_of_others(path.name):
        return True
    name = path.name.removesuffix(".json")
    own = {
        p.name
        for end in ("", ".json")
        for _, p in numbered(path.parent, prefix="shard-", suffix=f".parquet{end}")
    }
    return name.endswith(".parquet") and name != "prompts.parquet" and path.name not in own


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())
