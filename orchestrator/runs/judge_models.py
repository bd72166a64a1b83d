"""The models of a run that are no version of it: those of judges. Recorded when it begins, compared when it goes on.

A judge that was edited between two rounds would grade them by two standards.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from orchestrator.config.model_files import model_as_version, resolve_model
from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import PolicySettings
from orchestrator.runs.phases import Drawn
from policies.base.errors import CorruptStateError, InputError, explain
from policies.base.records import PolicyVersion
from policies.storage.policy_store import PolicyStore
from policies.storage.version_files import files_digest


def judge_model_names(config: RunConfig) -> list[str]:
    """Models other than the policy that judges load themselves, as the config names them."""
    models = [model for each in config.components for model in each.other_models()]
    return sorted({model.name for model in models if not model.tokenizer_only})


def local_judge_models(config: RunConfig) -> dict[str, PolicyVersion]:
    """Those that lie on this machine, with what identifies their files; reads their weights once.

    One that is not here is fetched from the hub by the node that needs it, or that node says why it cannot.
    """
    found = {}
    for name in judge_model_names(config):
        with suppress(InputError):
            resolve_model(PolicySettings(model=name), download=False)
            found[name] = model_as_version(name)
    return found


def model_as_recorded(models: Mapping[str, PolicyVersion], name: str) -> PolicyVersion:
    """A judge's model with the digests that the driver found, at its place on this node: whoever loads it compares."""
    if name not in models:
        return model_as_version(name)
    path = resolve_model(PolicySettings(model=name))
    return models[name].model_copy(update={"path": str(path)})


def models_as_begun(
    config: RunConfig, store: PolicyStore, recorded: Drawn | None
) -> dict[str, PolicyVersion]:
    """Record the starting model, or hold it and judges' models to what round 0 `recorded`; returns those of judges.

    Raises:
        PolicyStoreError: the starting model changed.
        CorruptStateError: the model of a judge changed.
    """
    initial = store.adopt_initial(resolve_model(config.policy), begun=recorded is not None)
    judges = local_judge_models(config)
    if recorded is not None:
        check_same_models(recorded, initial, judges)
    return judges


def check_same_models(
    recorded: Drawn, initial: PolicyVersion, judges: Mapping[str, PolicyVersion]
) -> None:
    """Refuse to go on with other models than the run began with. What an older Pawl did not record is not compared.

    Raises:
        CorruptStateError: the starting model or a judge's has other files.
    """
    if recorded.model and recorded.model != files_digest(initial):
        _refuse("the starting model", initial.path, "policy.model")
    for name, version in judges.items():
        if recorded.judge_models.get(name, files_digest(version)) != files_digest(version):
            _refuse("the model of a judge", version.path, "judges")


def _refuse(what: str, path: str, where: str) -> None:
    raise CorruptStateError(
        explain(
            f"{what} is not what the run began with: its weights, tokenizer, template or config changed",
            value=path,
            where=where,
            fix="restore the folder from a copy, or start a new run",
        )
    )
