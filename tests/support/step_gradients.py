"""The gradients of an update's optimizer steps, made whole or in microbatches, by one worker or by several together.

Usage: step_gradients.py FOLDER RANK WORLD_SIZE; beside FOLDER lie `model`, the policy, and `other`, the reference.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from policies.examples.kinds import Example
from policies.objectives.reference import ReferencePart, ReferencePlan
from tests.support.training_cases import (
    demonstrations,
    log_of,
    make_engine,
    make_job,
    make_loss,
    pairs,
    singles,
    turn_singles,
    version,
)
from workers.training.distributed.process_group import LOOPBACK, listen
from workers.training.engine import ProcessGroup
from workers.training.trl_parts.resumable import ResumableSteps

OWN = str(Path(__file__).parent / "own_losses.py")
NUM_ROWS, BATCH_SIZE = 9, 8
"""Two steps of 4 and 5 rows: in microbatches of 1 the shorter one repeats a row, which must count for nothing."""


@dataclass(frozen=True)
class Case:
    """A loss, and how its examples are weighed."""

    loss: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    weighted: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Microbatches to try: the smallest cut most, so it stands for the others beside the two known statistics."""
        if "batch_size" in self.options:
            return ()
        return (1, 2, 4) if self.loss in ("kto", "aot") and not self.weighted else (1,)

    def examples(self) -> Sequence[Example]:
        makers: dict[str, Any] = {
            "pair": pairs,
            "unpaired": singles,
            "steps": turn_singles,
            "supervised": demonstrations,
        }
        found: list[Example] = list(makers[self.kind](12))[:NUM_ROWS]
        if not self.weighted:
            return found
        weights = (0.25, 3.0, 1.0, 0.5)
        return [e.model_copy(update={"weight": weights[i % 4]}) for i, e in enumerate(found)]


CASES = {
    "dpo": Case("dpo", "pair"),
    "dpo_weighted": Case("dpo", "pair", weighted=True),
    "kto": Case("kto", "unpaired", {"beta": 0.5}),
    "kto_fewer_partners": Case("kto", "unpaired", {"beta": 0.5, "kl_share": 0.5}),
    "kto_weighted": Case("kto", "unpaired", {"beta": 0.5}, weighted=True),
    "kto_sharded": Case("kto", "unpaired", {"beta": 0.5, "kl_share": 0.5}),
    "step_kto": Case("step_kto", "steps", {"beta": 0.5}),
    "sentence_kto": Case("sentence_kto", "steps", {"beta": 0.5}),
    "aot": Case("aot", "pair", {"beta": 0.5}),
    "aot_weighted": Case("aot", "pair", {"beta": 0.5}, weighted=True),
    "aot_unpaired": Case("aot_unpaired", "pair", {"beta": 0.5}),
    "sft_chosen": Case("sft_chosen", "pair"),
    "sft": Case("sft", "supervised"),
    "own_hinge": Case(f"{OWN}:ThousandHinge", "pair"),
    "own_hinge_weighted": Case(f"{OWN}:ThousandHinge", "pair", weighted=True),
    "own_pairs": Case(f"{OWN}:PlainPairs", "pair"),
    "own_pairs_weighted": Case(f"{OWN}:PlainPairs", "pair", weighted=True),
    "own_kto": Case(f"{OWN}:SteepKTO", "unpaired"),
    "own_singles": Case(f"{OWN}:PlainSingles", "unpaired"),
    "own_imitation": Case(f"{OWN}:PlainImitation", "supervised"),
    "own_centred": Case(f"{OWN}:CentredPairs", "pair", weighted=True),
    "own_centred_alone": Case(f"{OWN}:CentredPairs", "pair", options={"batch_size": 1}),
}
TOGETHER: tuple[tuple[str, int | None], ...] = (
    ("kto", None),
    ("own_centred_alone", None),  # one of the workers has no row of any step
    *((name, 2) for name in ("kto", "kto_sharded", "step_kto", "sentence_kto", "sft_chosen")),
    *((name, 2) for name in ("aot_weighted", "own_centred", "own_hinge", "own_hinge_weighted")),
    *((name, 2) for name in ("own_pairs", "own_pairs_weighted", "own_kto", "own_imitation")),
)
"""Cases that two workers make, and the sizes of their microbatches."""


@contextmanager
def gradients_kept() -> Iterator[list[dict[str, Any]]]:
    """The gradients of each optimizer step, by parameter, as the optimizer is about to use them."""
    kept: list[dict[str, Any]] = []
    norm_of = ResumableSteps._get_grad_norm

    def keep(trainer: Any, model: Any, grad_norm: Any = None) -> Any:
        kept.append({n: whole(p.grad) for n, p in trainer.model.named_parameters()})
        return norm_of(trainer, model, grad_norm)

    def whole(gradient: Any) -> Any:
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        return gradient.detach().clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableSteps, "_get_grad_norm", keep)
        yield kept


def gradients(
    case: Case, folder: Path, micro: int | None, place: ProcessGroup | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """The gradients of each step of an update of `case`, and what the steps logged."""
    folder.mkdir(parents=True)
    root = next(parent for parent in folder.parents if (parent / "model").is_dir())
    job = make_job(
        version(root / "model"),
        folder,
        reference=ReferencePlan(parts=(ReferencePart(version=1, weight=1.0),)),
        reference_versions=(version(root / "other", number=1),),
        process_group=place,
    )
    options: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "micro_batch_size": micro,
        "max_grad_norm": 1e9,
        "learning_rate": 1e-7,
        "group_timeout_seconds": 120.0,
        **case.options,
    }
    engine = make_engine("trl", make_loss(case.loss, **case.settings), None, **options)
    with gradients_kept() as kept:
        engine.update(job, case.examples())
    return kept, log_of(job) if job.writes else []


def all_together(folder: Path, *, rank: int, world_size: int) -> None:
    """Every case as one of several workers; rank 0 writes the gradients to `<case>-<micro>.pt`."""
    import torch

    for name, micro in TOGETHER:
        gc.freeze()  # each update collects garbage, and would walk through all that is imported
        case = CASES[name]
        if name.endswith("_sharded"):
            case = replace(case, options={"sharding": "fsdp", "workers": world_size})
        place = meet(folder / f"{name}-{micro}.port", rank, world_size)
        made = gradients(case, folder / f"{name}-{micro}-{rank}", micro, place)
        if rank == 0:
            torch.save(made, folder / f"{name}-{micro}.pt")


def meet(meeting: Path, rank: int, world_size: int) -> ProcessGroup:
    """Rank 0 tells the others its port by a file."""
    if rank == 0:
        meeting.with_suffix(".tmp").write_text(str(listen(LOOPBACK)))
        meeting.with_suffix(".tmp").rename(meeting)
    deadline = time.monotonic() + 240
    while not meeting.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return ProcessGroup(
        address=LOOPBACK,
        port=int(meeting.read_text()),
        rank=rank,
        world_size=world_size,
        local_world_size=world_size,
    )


if __name__ == "__main__":
    all_together(Path(sys.argv[1]), rank=int(sys.argv[2]), world_size=int(sys.argv[3]))
