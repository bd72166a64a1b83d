"""Checks that a candidate must pass before it may be published: every number finite, the same weights by name and
shape.

The files are read back, so that what is checked is what the samplers will load.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.base.errors import DivergenceError, TrainingError, explain
from policies.examples.kinds import TokenSequence
from policies.storage.policy_store import weight_files

if TYPE_CHECKING:
    from torch import Tensor

TensorShape = tuple[str, tuple[int, ...]]
"""The type of a tensor's numbers in the file's own terms (`F32`), and its shape."""


def shapes_of(directory: Path) -> dict[str, TensorShape]:
    """Type and shape of every tensor in the safetensors files of a model directory, from their headers.

    Raises:
        TrainingError: a file is cut off or is no safetensors file.
    """
    found: dict[str, TensorShape] = {}
    for path in weight_files(directory):
        try:
            with path.open("rb") as handle:
                length = int.from_bytes(handle.read(8), "little")
                if length > path.stat().st_size:
                    raise ValueError("it ends inside its header")
                header = json.loads(handle.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    found[name] = (str(entry["dtype"]), tuple(map(int, entry["shape"])))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path} is not a whole safetensors file: {error}") from error
    return found


def check_candidate(
    candidate: Path, parent: Path, *, untrained: bool, tied: Collection[str] = ()
) -> None:
    """Refuse new weights that cannot take their parent's place.

    Args:
        candidate: folder with the new weights.
        parent: folder of the policy that training began with.
        untrained: the parent is the model the run started from: it may be of another type (bf16), and may hold names
            that training libraries do not keep (tied heads, old buffers). Published versions must agree exactly.
        tied: names that hold the same numbers as others, so a file may lack them.

    Raises:
        DivergenceError: a number is not finite; names the tensor.
        TrainingError: names, shapes or types differ.
    """
    new, old = shapes_of(candidate), shapes_of(parent)
    for name in sorted(new.keys() & old.keys()):
        same = new[name][1] == old[name][1] if untrained else new[name] == old[name]
        if not same:
            raise _misfit(f"{name} is {new[name]}, in its parent {old[name]}", candidate)
    extra = sorted(new.keys() - old.keys() - set(tied))
    missing = [] if untrained else sorted(old.keys() - new.keys())
    if extra or missing:
        raise _misfit(f"tensors appeared ({extra[:3]}) or are missing ({missing[:3]})", candidate)
    for path in weight_files(candidate):
        _check_numbers(path)


def _check_numbers(path: Path) -> None:
    import numpy as np
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dict: it has no other way to list names
            if not np.isfinite(tensors.get_tensor(name)).all():
                raise DivergenceError(
                    explain(
                        "a weight is not finite after the update",
                        value=name,
                        where="training.learning_rate",
                        fix="lower it, or raise training.warmup_fraction",
                    )
                )


def check_logits(model: Any, sequences: Sequence[TokenSequence]) -> None:
    """Refuse a model that answers some sequences of the round with log-probs that are not finite.

    Finite weights can still overflow on the way through the layers.

    Raises:
        DivergenceError: names the sequence.
    """
    from policies.objectives.logprobs import sequence_logprobs

    check_finite(sequences, sequence_logprobs(model, list(sequences), precision="fp32").per_token)


def check_finite(sequences: Sequence[TokenSequence], scores: Sequence[Tensor]) -> None:
    """Refuse log-probs that are not finite, those that a new policy gives some sequences of the round.

    Raises:
        DivergenceError: names the sequence.
    """
    for sequence, values in zip(sequences, scores, strict=True):
        if not bool(values.isfinite().all()):
            raise DivergenceError(
                explain(
                    "the new policy gives log-probs that are not finite",
                    value=sequence.trajectory_id,
                    where="training.learning_rate",
                    fix="lower it, or raise training.warmup_fraction",
                )
            )


def _misfit(what: str, candidate: Path) -> TrainingError:
    return TrainingError(
        explain(
            f"the new weights are not those of their parent: {what}",
            value=str(candidate),
            where="policy.model and training.engine",
            fix="report this: an update never changes the names, shapes or types of weights",
        )
    )
