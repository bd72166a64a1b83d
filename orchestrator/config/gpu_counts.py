"""The numbers of GPUs that `num_gpus: auto` stands for, on a machine or cluster that has so many.

They stay `auto` in the config of a run: it may be resumed where there are others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orchestrator.config.groups import GroupOutline, group_outlines
from orchestrator.config.roles import group_of
from policies.base.errors import ConfigurationError, explain

if TYPE_CHECKING:
    from orchestrator.config.run_config import RunConfig
    from orchestrator.config.sections import ResourceSettings

_SMALLEST = 10_000
"""Ray counts GPUs in ten-thousandths."""


def with_gpu_counts(config: RunConfig, gpus: float) -> RunConfig:
    """Replace every `num_gpus: auto` by a number.

    Processes that compute with a model get a GPU each. Where there are fewer, all of them share evenly, as sampler and
    trainer do on one GPU; they take turns.

    Args:
        config: as it was loaded.
        gpus: GPUs of the machine or cluster; those that groups ask for by number are taken off first.
    """
    asking, left = _asking(config, gpus)
    whole = _all_whole(asking, left)
    share = 0.0 if whole else _share(sum(g.workers for g in asking), left)
    return _replaced(config, {g.name: float(g.gpus_wanted) if whole else share for g in asking})


def gpu_problem(config: RunConfig, gpus: float) -> str | None:
    """Tell why `auto` cannot be resolved with so many GPUs: several training processes would have to share one."""
    asking, left = _asking(config, gpus)
    trains = any(g.name == "train" for g in asking)
    if not trains or config.training.workers == 1 or left <= 0 or _all_whole(asking, left):
        return None
    others = sum(g.workers * g.gpus_wanted for g in asking if g.name != "train")
    return explain(
        f"{config.training.workers} training processes need a GPU each, and the others that compute with a model "
        f"{others} more; there are {left:g}",
        value=config.training.workers,
        where="training.workers (training.resources.num_gpus is auto)",
        fix="set training.workers=1, which shares GPUs with the samplers, or use more GPUs",
    )


def check_gpus(config: RunConfig, gpus: float) -> None:
    """Refuse a cluster on which `auto` cannot be resolved.

    Raises:
        ConfigurationError: what `gpu_problem` says.
    """
    problem = gpu_problem(config, gpus)
    if problem is not None:
        raise ConfigurationError(problem)


def left_out(config: RunConfig, gpus: float) -> list[str]:
    """The groups that would compute with a model on the CPU because others asked for every GPU there is."""
    asking, left = _asking(config, gpus)
    return [g.name for g in asking] if gpus > 0 and left <= 0 else []


def _asking(config: RunConfig, gpus: float) -> tuple[list[GroupOutline], float]:
    """The groups with `auto` that compute with a model, and the GPUs that are left for them."""
    groups = group_outlines(config)
    left = gpus - sum(g.workers * g.resources.gpus for g in groups)
    return [g for g in groups if g.automatic and g.gpus_wanted], left


def _all_whole(asking: list[GroupOutline], left: float) -> bool:
    return sum(g.workers * g.gpus_wanted for g in asking) <= left + 1e-9


def _share(workers: int, left: float) -> float:
    """The part of `left` GPUs that each of `workers` gets, so that on every GPU whole shares lie beside each other."""
    if left <= 0:
        return 0.0
    if left < 1:
        return math.floor(left / workers * _SMALLEST) / _SMALLEST
    on_each = math.ceil(workers / math.floor(left + 1e-9))
    return math.floor(_SMALLEST / on_each) / _SMALLEST


def _replaced(config: RunConfig, chosen: dict[str, float]) -> RunConfig:
    def own(resources: ResourceSettings, name: str) -> ResourceSettings:
        if resources.num_gpus != "auto":
            return resources
        return resources.model_copy(update={"num_gpus": chosen.get(name, 0.0)})

    verify = config.verify
    changes = {
        "rollout": config.rollout.model_copy(
            update={"resources": own(config.rollout.resources, "rollout")}
        ),
        "verify": verify.model_copy(
            update={
                "resources": own(verify.resources, "verify"),
                "judge_resources": own(verify.judge_resources, "judge"),
            }
        ),
        "roles": {
            name: role.model_copy(update={"resources": own(role.resources, group_of(name))})
            for name, role in config.roles.items()
        },
        "training": config.training.model_copy(
            update={"resources": own(config.training.resources, "train")}
        ),
    }
    copied = config.model_copy(update=changes)
    # A copy takes along what was computed from the old values.
    vars(copied).pop("resolved_stages", None)
    return copied
