"""Weights in and out of an update: load a policy, average references, write a candidate that is whole or absent."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.base.errors import StorageError, TrainingError, explain
from policies.base.records import PolicyVersion
from policies.objectives.reference import ReferencePlan
from policies.storage.files import make_directory, move, put, sync_files
from policies.storage.folder_names import is_leftover_of_others
from policies.storage.policy_store import MANIFEST, weight_files
from workers.training.checkpoints.tensor_files import check_whole, refusals_told

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def quiet_transformers() -> None:
    """Keep progress bars and advice of the training libraries off the console."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("trl", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def load_model(path: str, *, device: str, attention: str, trust_remote_code: bool) -> Any:
    """Load a causal language model in float32, its noise off: steps must start at the reference exactly."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from workers.training.noise import silence, silence_modules

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)  # nosec B615
    silenced = silence(config)
    if silenced:
        logger.info("off in the update, as they are for the sampler: %s", silenced)
    model = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a checked folder
        path,
        config=config,
        dtype=torch.float32,
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
    )
    silence_modules(model)
    return model.to(device)


def check_loaded(model: Any, token_ids: Sequence[int], *, precision: str) -> None:
    """See, on one sequence, that training and evaluation mode agree and how the model's log-probs are computed.

    Args:
        model: what `load_model` gave, not yet sharded: afterwards every worker would have to take part.
        token_ids: of an example of the update. [T]
        precision: of the forward pass in training.

    Raises:
        TrainingError: it is noisy in training mode.
    """
    import torch

    from policies.objectives.logprobs import head_is_linear
    from workers.training.noise import check_quiet

    check_quiet(model, token_ids, precision=precision)
    ids = torch.tensor([list(token_ids)], device=next(model.parameters()).device)
    head_is_linear(model, ids, torch.ones_like(ids))


def averaged_weights(plan: ReferencePlan, versions: Sequence[PolicyVersion]) -> dict[str, Tensor]:
    """The weighted sum of several versions' weights, in float32, one version in memory at a time.

    Raises:
        TrainingError: a version of the plan is missing, or the versions do not have the same weights.
    """
    from safetensors.torch import load_file

    paths = {v.number: Path(v.path) for v in versions}
    total: dict[str, Tensor] = {}
    for position, part in enumerate(plan.parts):
        if part.version not in paths:
            raise TrainingError(
                f"the reference names version {part.version}, which the job does not bring"
            )
        state: dict[str, Tensor] = {}
        for file in weight_files(paths[part.version]):
            state.update(load_file(file))
        if position and state.keys() != total.keys():
            raise TrainingError(
                f"versions {[p.version for p in plan.parts]} do not have the same weights to average"
            )
        for name, tensor in state.items():
            value = tensor.float() * part.weight
            total[name] = total[name] + value if position else value
    return total


def load_reference(
    plan: ReferencePlan,
    versions: Sequence[PolicyVersion],
    *,
    device: str,
    attention: str,
    trust_remote_code: bool,
) -> Any:
    """The reference as a model of its own: one version, or the average of several."""
    first = next((v for v in versions if v.number == plan.parts[0].version), None)
    if first is None:
        raise TrainingError(
            f"the reference names version {plan.parts[0].version}, which the job does not bring"
        )
    model = load_model(
        first.path, device=device, attention=attention, trust_remote_code=trust_remote_code
    )
    if plan.single is None:
        missing, unexpected = model.load_state_dict(averaged_weights(plan, versions), strict=False)
        tied = (
            set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
        )
        if unexpected or set(missing) - tied:
            raise TrainingError(
                f"averaged weights do not fit the model: missing {missing[:3]}, unknown {list(unexpected)[:3]}"
            )
        model.tie_weights()
    return model.eval()


@contextmanager
def candidate_directory(output_dir: Path, *, writes: bool = True) -> Iterator[Path | None]:
    """A folder to fill; it becomes `output_dir` when the body ends well, and is removed when it does not.

    Gives None to a worker that does not write.

    Raises:
        TrainingError: `output_dir` exists already.
        StorageError: the disk refused, or took only a part of the weights.
    """
    if not writes:
        yield None
        return
    if output_dir.exists():
        raise TrainingError(
            explain(
                "the folder for the new weights exists already",
                value=str(output_dir),
                where="the round's output folder",
                fix="remove it; a published policy is never overwritten",
            )
        )
    temporary = output_dir.with_name(output_dir.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by an update that was killed
    make_directory(temporary)
    try:
        with refusals_told(temporary):
            yield temporary
            for tensors in sorted(temporary.rglob("*.safetensors")):
                check_whole(tensors)
        for folder in (*filter(Path.is_dir, temporary.rglob("*")), temporary):
            sync_files(folder)
        move(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_model(model: Any, source: Path, target: Path) -> None:
    """Write float32 safetensors under the checkpoint's own names, and every other file as it came.

    Tokenizer, chat template and configs are copied byte by byte: the next round must render prompts as this one did.
    """
    from transformers import GenerationConfig

    # Some published generation configs are refused when saved again; the file itself is copied below.
    model.generation_config = GenerationConfig()
    model.save_pretrained(target)
    copy_side_files(source, target)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    put(target / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def copy_side_files(source: Path, target: Path) -> None:
    """Copy what lies beside the weights: configs, tokenizer, chat template, remote code; not weights, not folders."""
    (target / "generation_config.json").unlink(missing_ok=True)
    for path in sorted(source.iterdir()):
        if is_leftover_of_others(path.name) or path.name == MANIFEST:
            continue
        if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES):
            copy = Path(shutil.copyfile(path, target / path.name))
            if copy.stat().st_size != path.stat().st_size:
                raise StorageError(
                    f"{copy} is not all of {path}. Fix: check the disk and make room; then `pawl resume`"
                )
