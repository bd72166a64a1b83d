"""The policy store: published weights, write-once, each with a manifest that names parent, round and digests.

Layout: `<run>/policies/0003/{*.safetensors, config.json, tokenizer files, manifest.json}`. Version 0 is
the model the run started from: only its manifest lives here, its files stay where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from policies.base.errors import CorruptPolicyError, InputError, PolicyStoreError, explain
from policies.base.records import PolicyVersion, Record, VersionFile
from policies.storage import files as durable
from policies.storage.artifacts import file_sha256
from policies.storage.checksums import read_sealed, with_seal
from policies.storage.guarding import committing
from policies.storage.version_files import MANIFEST, companions_of, differences

__all__ = [
    "MANIFEST",
    "Manifest",
    "PolicyStore",
    "check_companions",
    "check_files",
    "digest_of",
    "read_manifest",
    "weight_files",
]


class Manifest(Record):
    """The record of a published version. Example: `Manifest(number=1, round=1, parent=0,
    files={"model.safetensors": "9f.."}, ...)`.
    """

    number: int
    round: int
    parent: int | None
    files: dict[str, str]
    """Name and sha256 of every weight file."""
    digest: str
    path: str
    """Where the files are; for versions above 0 the name of the folder of this manifest, so that equal versions of two
    runs have equal manifests."""
    source: dict[str, str] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict, exclude_if=lambda digests: not digests)
    """Digest of each thing that the version was made from. Empty: the starting model, or by an older Pawl."""
    contents: tuple[VersionFile, ...] | None = None
    """Every file of the version, its weights too; of a model that is not ours, those that are read. None: by an older
    Pawl, which recorded the weights alone."""
    seal: str = ""
    """sha256 of the rest of the manifest, so that a changed digit in it is noticed. Empty: by an older Pawl."""

    @property
    def content_digest(self) -> str:
        """One digest over the weights."""
        return self.digest

    @property
    def summary(self) -> dict[str, str]:
        """Nothing is told of it but what it holds."""
        return {}

    @property
    def companions(self) -> tuple[VersionFile, ...] | None:
        """The files beside the weights."""
        if self.contents is None:
            return None
        return tuple(fact for fact in self.contents if fact.name not in self.files)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model directory, sorted.

    Raises:
        InputError: there are none (only pickled weights, or no model at all).
    """
    if not path.is_dir():
        raise InputError(
            f"no model directory at {path}. Set by: policy.model. Fix: give a local "
            "directory with safetensors weights, or a hub id that can be downloaded"
        )
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = [p.name for p in path.glob("*.bin")]
        found = f"only pickled weights ({', '.join(pickled)})" if pickled else "no weights"
        raise InputError(
            f"{path} has {found}. Set by: policy.model. Fix: save the model as safetensors (pickle is not loaded)"
        )
    return files


def digest_of(files: dict[str, str]) -> str:
    """One digest over names and sha256 of weight files."""
    text = "\n".join(f"{name} {sha}" for name, sha in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def check_files(version: PolicyVersion) -> None:
    """Read the files of `version` and compare them with what was recorded: weights, and all that lies beside them.

    Raises:
        CorruptPolicyError: a file is missing, truncated, changed or was added; it is named where that is known.
    """
    directory = Path(version.path)
    weights = {p.name: file_sha256(p) for p in sorted(directory.glob("*.safetensors"))}
    if digest_of(weights) != version.digest:
        _refuse(version, [_which_changed(directory, weights)])
    check_companions(version)


def check_companions(version: PolicyVersion) -> None:
    """The same of the files beside the weights alone: quick, for whoever knows that the weights were checked.

    Raises:
        CorruptPolicyError: a file is missing, changed, or was added.
    """
    if version.companions is not None:
        _refuse(
            version, differences(Path(version.path), version.companions, ours=version.number > 0)
        )


def _refuse(version: PolicyVersion, wrong: Sequence[str]) -> None:
    if wrong:
        raise CorruptPolicyError(
            explain(
                f"policy version {version.number} is not what was {'published' if version.number else 'begun with'}: "
                f"{', '.join(wrong)}",
                value=version.path,
                where="whoever changed the folder",
                fix="restore its files from a copy (remove what was added), or start a new run; nothing is sampled "
                "from or trained on a changed version",
            )
        )


def _which_changed(directory: Path, found: dict[str, str]) -> str:
    """Return which weight files are not as published; copies of a version without its manifest cannot tell."""
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
        expected = Manifest.model_validate_json(text).files
    except (OSError, ValueError):
        return "its weights changed"
    missing = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    changed = [
        f"{name} changed"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    foreign = [f"{name} was not published" for name in sorted(found.keys() - expected.keys())]
    return ", ".join(missing + changed + foreign) or "its manifest changed"


class PolicyStore:
    """Versions of one run, by number. `guard` raises when this process may not publish (any more)."""

    def __init__(self, root: Path, guard: Callable[[], None] | None = None) -> None:
        self.root = root
        self.guard = guard

    def directory(self, number: int) -> Path:
        return self.root / f"{number:04d}"

    def adopt_initial(self, model_dir: Path, *, begun: bool = False) -> PolicyVersion:
        """Record the starting model as version 0, without copying it; of a run that has `begun`, compare it.

        Raises:
            PolicyStoreError: it changed since the run began, or what was recorded of it is gone.
        """
        if self.manifest(0) is not None:
            version = self.get(0).model_copy(update={"path": str(model_dir)})
            self._compare_initial(version)
            return self.get(0)
        if begun:
            raise CorruptPolicyError(
                explain(
                    "what the run recorded of its starting model is gone: whether it is still the same cannot be told",
                    value=str(self.directory(0) / MANIFEST),
                    where="whoever removed the file",
                    fix="restore it from a copy of the run, or start a new run",
                )
            )
        files = {p.name: file_sha256(p) for p in weight_files(model_dir)}
        self._write_manifest(
            Manifest(
                number=0,
                round=0,
                parent=None,
                files=files,
                digest=digest_of(files),
                path=str(model_dir),
                contents=_contents(model_dir, files, ours=False),
            )
        )
        return self.get(0)

    @staticmethod
    def _compare_initial(version: PolicyVersion) -> None:
        try:
            check_files(version)
        except CorruptPolicyError as error:
            raise PolicyStoreError(
                f"the starting model changed since the run began: {error}"
            ) from None

    def publish(
        self,
        candidate: Path,
        *,
        number: int,
        round_index: int,
        parent: int,
        inputs: Mapping[str, str] | None = None,
    ) -> PolicyVersion:
        """Move a finished candidate folder into the store and return its version; `inputs`: what it was made from.

        Doing it again for a version that was published already returns that version.
        """
        with committing(self.guard):
            return self._publish(candidate, number, round_index, parent, inputs or {})

    def _publish(
        self,
        candidate: Path,
        number: int,
        round_index: int,
        parent: int,
        inputs: Mapping[str, str],
    ) -> PolicyVersion:
        target = self.directory(number)
        if self.manifest(number) is not None:
            return self.get(number)
        if (
            target.exists() and candidate.exists()
        ):  # no part of this update: its weights are in the candidate
            durable.remove_tree(target)
        elif target.exists():  # moved but not yet marked: the manifest below completes it
            candidate = target
        files = {p.name: file_sha256(p) for p in weight_files(candidate)}
        durable.sync_files(candidate)
        if candidate != target:
            self._ask_guard()
            durable.move(candidate, target)
        self._write_manifest(
            Manifest(
                number=number,
                round=round_index,
                parent=parent,
                files=files,
                digest=digest_of(files),
                path=target.name,
                inputs=dict(inputs),
                contents=_contents(target, files, ours=True),
            )
        )
        return self.get(number)

    def get(self, number: int) -> PolicyVersion:
        """The version called `number`.

        Raises:
            PolicyStoreError: it was never published.
        """
        manifest = self.manifest(number)
        if manifest is None:
            raise PolicyStoreError(f"policy version {number} was never published in {self.root}")
        path = manifest.path if number == 0 else str(self.directory(number))
        return PolicyVersion(
            number=number,
            round=manifest.round,
            parent=manifest.parent,
            path=path,
            digest=manifest.digest,
            companions=manifest.companions,
        )

    def manifest(self, number: int) -> Manifest | None:
        """Return the manifest of a version, or None when it was not published."""
        return read_manifest(self.directory(number), number)

    def _ask_guard(self) -> None:
        if self.guard is not None:
            self.guard()

    def _write_manifest(self, manifest: Manifest) -> None:
        with committing(self.guard):
            durable.write_json(
                self.directory(manifest.number) / MANIFEST,
                with_seal(manifest.model_dump(mode="json", exclude={"seal"})),
            )


def read_manifest(directory: Path, number: int) -> Manifest | None:
    """The manifest of version `number` in its folder, or None when it was not published.

    Raises:
        CorruptPolicyError: it cannot be read, changed since it was written, or is of another version.
    """
    path = directory / MANIFEST
    try:
        manifest = Manifest.model_validate(read_sealed(path.read_bytes()))
        if (manifest.number, digest_of(manifest.files)) != (number, manifest.digest):
            raise ValueError("it contradicts itself: it changed since it was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        durable.raise_if_disk_failed(error, path)
        raise CorruptPolicyError(
            explain(
                f"the manifest of policy version {number} cannot be read: {error}",
                value=str(path),
                where="whoever changed the file",
                fix="restore it from a copy of the run, or start a new run",
            )
        ) from error
    return manifest


def _contents(
    directory: Path, weights: Mapping[str, str], *, ours: bool
) -> tuple[VersionFile, ...]:
    """Facts of all files of a version; the sha256 of its weights are known already."""
    heavy = [
        VersionFile(name=name, num_bytes=(directory / name).stat().st_size, sha256=sha)
        for name, sha in weights.items()
    ]
    return tuple(sorted([*heavy, *companions_of(directory, ours=ours)], key=lambda fact: fact.name))
