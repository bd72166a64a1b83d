"""The policy store: published weights, write-once, each with a manifest that names parent, round and digests.

Layout: `<run>/policies/0003/{*.safetensors, config.json, tokenizer files, manifest.json}`. Version 0 is
the model the run started from: only its manifest lives here, its files stay where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from policies import files as durable
from policies.errors import CorruptPolicyError, InputError, PolicyStoreError
from policies.guarding import committing
from policies.records import PolicyVersion, Record
from policies.shards import file_sha256

MANIFEST = "manifest.json"


class Manifest(Record):
    """What a published version is. Example: `Manifest(number=1, round=1, parent=0,
    files={"model.safetensors": "9f.."}, ...)`.
    """

    number: int
    round: int
    parent: int | None
    files: dict[str, str]
    """Name and sha256 of every weight file."""
    digest: str
    path: str
    """Where the files are; for versions above 0 the folder of this manifest."""
    source: dict[str, str] = Field(default_factory=dict)


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


def check_weights(version: PolicyVersion) -> None:
    """Read the weight files of `version` and compare them with its digest.

    Raises:
        CorruptPolicyError: a file is missing, truncated or changed; it is named where the manifest can tell.
    """
    files = {p.name: file_sha256(p) for p in sorted(Path(version.path).glob("*.safetensors"))}
    if digest_of(files) != version.digest:
        raise CorruptPolicyError(
            f"policy version {version.number} at {version.path} does not match its digest {version.digest[:12]}: "
            f"{_which_changed(Path(version.path), files)}. Fix: restore it from a copy; "
            "nothing is sampled from or trained on changed weights"
        )


def _which_changed(directory: Path, found: dict[str, str]) -> str:
    """Which weight files are not as published; copies of a version without its manifest cannot tell."""
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
        expected = Manifest.model_validate_json(text).files
    except (OSError, ValueError):
        return "its files changed since it was published"
    missing = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    changed = [
        f"{name} changed since it was published"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    foreign = [f"{name} was not published" for name in sorted(found.keys() - expected.keys())]
    return ", ".join(missing + changed + foreign) or "its manifest changed since it was published"


class PolicyStore:
    """Versions of one run, by number. `guard` raises when this process may not publish (any more)."""

    def __init__(self, root: Path, guard: Callable[[], None] | None = None) -> None:
        self.root = root
        self.guard = guard

    def directory(self, number: int) -> Path:
        return self.root / f"{number:04d}"

    def adopt_initial(self, model_dir: Path) -> PolicyVersion:
        """Record the starting model as version 0, without copying it."""
        existing = self._manifest(0)
        files = {p.name: file_sha256(p) for p in weight_files(model_dir)}
        digest = digest_of(files)
        if existing is not None:
            if existing.digest != digest:
                raise PolicyStoreError(
                    f"the starting model at {model_dir} changed since the run began "
                    f"({existing.digest[:12]} -> {digest[:12]}). Fix: restore it, or "
                    "start a new run"
                )
            return self.get(0)
        self._write_manifest(
            Manifest(
                number=0, round=0, parent=None, files=files, digest=digest, path=str(model_dir)
            )
        )
        return self.get(0)

    def publish(
        self, candidate: Path, *, number: int, round_index: int, parent: int
    ) -> PolicyVersion:
        """Move a finished candidate folder into the store and return its version.

        Doing it again for a version that was published already returns that version.
        """
        with committing(self.guard):
            return self._publish(candidate, number, round_index, parent)

    def _publish(
        self, candidate: Path, number: int, round_index: int, parent: int
    ) -> PolicyVersion:
        target = self.directory(number)
        if self._manifest(number) is not None:
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
                path=str(target),
            )
        )
        return self.get(number)

    def get(self, number: int) -> PolicyVersion:
        """The version called `number`.

        Raises:
            PolicyStoreError: it was never published.
        """
        manifest = self._manifest(number)
        if manifest is None:
            raise PolicyStoreError(f"policy version {number} was never published in {self.root}")
        path = manifest.path if number == 0 else str(self.directory(number))
        return PolicyVersion(
            number=number,
            round=manifest.round,
            parent=manifest.parent,
            path=path,
            digest=manifest.digest,
        )

    def _manifest(self, number: int) -> Manifest | None:
        try:
            text = (self.directory(number) / MANIFEST).read_text(encoding="utf-8")
            manifest = Manifest.model_validate_json(text)
            if (manifest.number, digest_of(manifest.files)) != (number, manifest.digest):
                raise ValueError("it contradicts itself: it changed since it was written")
            return manifest
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CorruptPolicyError(
                f"{self.directory(number) / MANIFEST} cannot be read: {error}. Fix: restore it from a copy"
            ) from error

    def _ask_guard(self) -> None:
        if self.guard is not None:
            self.guard()

    def _write_manifest(self, manifest: Manifest) -> None:
        with committing(self.guard):
            durable.write_json(
                self.directory(manifest.number) / MANIFEST, manifest.model_dump(mode="json")
            )
