"""Finds the starting model's files: a directory, the cached demo model, or a download from the hub."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from orchestrator.config.sections import PolicySettings
from policies.base.errors import InputError, explain
from policies.base.records import PolicyVersion
from policies.base.requirements import ModelRequirement
from policies.storage.artifacts import file_sha256
from policies.storage.model_folder import check_folder
from policies.storage.policy_store import digest_of, weight_files
from policies.storage.version_files import companions_of

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
"""What is fetched of a hub model: no pickled weights, and no code."""

DEMO_MODEL = "smollm2-135m-instruct"


def cache_dir() -> Path:
    """Pawl's cache: `$PAWL_CACHE`, else `~/.cache/pawl`."""
    return Path(os.environ.get("PAWL_CACHE", Path.home() / ".cache" / "pawl"))


def resolve_model(
    policy: PolicySettings, *, download: bool = True, with_code: bool = False
) -> Path:
    """Return the local directory of the starting model, with safetensors weights in it.

    Args:
        policy: names the model.
        download: fetch a hub model that is not cached; off, such a model is reported as missing.
        with_code: fetch its Python files too; only for a config that has `trust_remote_code` on.

    Raises:
        InputError: there is no such model, or it has no safetensors weights.
    """
    if "\0" in policy.model or not policy.model.strip():
        raise InputError(
            explain(
                "this is not the name of a model",
                value=policy.model,
                where="policy.model",
                fix=f"give a directory, a hub id, or {DEMO_MODEL}",
            )
        )
    cached = cache_dir() / "models" / policy.model
    candidates = [_expanded(policy.model)]
    if ".." not in Path(policy.model).parts:  # a name in the cache cannot lead out of it
        candidates.append(cached)
    for path in candidates:
        if path.is_dir():
            check_folder(path)
            weight_files(path)
            return path.resolve()
    if policy.model == DEMO_MODEL:
        raise InputError(
            explain(
                "the demo model is not in the cache",
                value=str(cached),
                where="policy.model",
                fix="run `bash scripts/install`, which fetches and converts it once",
            )
        )
    if policy.model.startswith((".", "/", "~")) or policy.model.count("/") != 1:
        raise InputError(
            explain(
                "no such model directory",
                value=policy.model,
                where="policy.model",
                fix=(
                    "give a directory with config.json and safetensors, a hub id like "
                    f"Qwen/Qwen2.5-0.5B-Instruct, or {DEMO_MODEL}"
                ),
            )
        )
    return _from_hub(policy, download=download, with_code=with_code)


def _expanded(name: str) -> Path:
    """The name as a path, with `~` as the home folder where there is one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # nobody has such a home
        return Path(name)


def _from_hub(policy: PolicySettings, *, download: bool, with_code: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            explain(
                "a hub model needs the huggingface_hub package",
                value=policy.model,
                where="policy.model",
                fix="install pawl-lm[cpu] or [gpu], or give a local directory",
            )
        ) from error
    try:
        path = snapshot_download(
            policy.model,
            revision=policy.revision,
            local_files_only=not download,
            allow_patterns=[*_HUB_FILES, "*.py"] if with_code else _HUB_FILES,
        )
    except Exception as error:  # the hub client raises a dozen kinds, all meaning "not to be had"
        raise InputError(
            explain(
                f"the model cannot be had from the hub: {type(error).__name__}: {str(error).splitlines()[0]}",
                value=policy.model,
                where="policy.model",
                fix="check the id and the network, or give a local directory",
            )
        ) from error
    check_folder(Path(path))
    weight_files(Path(path))
    return Path(path)


def folder_of(model: ModelRequirement) -> Path | None:
    """The folder of a model that a component loads, if it is on this machine; never fetches one."""
    with suppress(InputError):
        return resolve_model(PolicySettings(model=model.name), download=False)
    path = _expanded(model.name)  # whoever loads it by itself may read other files than we do
    return path.resolve() if model.hosting is None and path.is_dir() else None


def model_as_version(model: str) -> PolicyVersion:
    """A model that is not a version of the run (a judge's), with what identifies its files."""
    path = resolve_model(PolicySettings(model=model))
    files = {p.name: file_sha256(p) for p in weight_files(path)}
    return PolicyVersion(
        number=0,
        round=0,
        parent=None,
        path=str(path),
        digest=digest_of(files),
        companions=companions_of(path, ours=False),
    )
