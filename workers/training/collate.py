"""Rows into the tensors that TRL's trainers read, with masks from who wrote the tokens and reference sums beside them.

Imports torch: import this module inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from policies.examples import PreferencePair, UnpairedExample
from policies.logprobs import padded
from workers.training.batching import MicroBatch, Partner


@dataclass(frozen=True)
class PairCollator:
    """Microbatches of pairs: chosen rows first, then rejected ones, as TRL's DPO loss expects. [2B, T]"""

    pairs: Sequence[PreferencePair]
    references: Sequence[tuple[float, float]]
    """Reference sums of chosen and rejected, per pair."""
    pad: int

    def __call__(self, batch: MicroBatch) -> dict[str, Any]:
        pairs = [self.pairs[row] for row in batch.rows]
        ids, attention, mask = padded(
            [p.chosen for p in pairs] + [p.rejected for p in pairs], self.pad
        )
        sums = torch.tensor([self.references[row] for row in batch.rows])
        return {
            "input_ids": ids,
            "attention_mask": attention,
            "completion_mask": mask,
            "ref_chosen_logps": sums[:, 0],
            "ref_rejected_logps": sums[:, 1],
            "weights": torch.tensor([p.weight for p in pairs]),
            "share": batch.share,
        }


@dataclass(frozen=True)
class UnpairedCollator:
    """Microbatches of single examples, with mismatched sequences for some of the rows. [N, T] and [K, T]"""

    examples: Sequence[UnpairedExample]
    references: Sequence[float]
    partners: Mapping[int, tuple[Partner, float]]
    """Mismatched sequence and its reference sum, by row; for KTO every microbatch holds such a row."""
    pad: int

    def __call__(self, batch: MicroBatch) -> dict[str, Any]:
        examples = [self.examples[row] for row in batch.rows]
        ids, attention, mask = padded([e.sequence for e in examples], self.pad)
        tensors: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": attention,
            "completion_mask": mask,
            "label": torch.tensor([e.desirable for e in examples]),
            "ref_logps": torch.tensor([self.references[row] for row in batch.rows]),
            "weights": torch.tensor([e.weight for e in examples]),
            "share": batch.share,
        }
        partners = [self.partners[row] for row in batch.rows if row in self.partners]
        if partners:
            kl_ids, kl_attention, kl_mask = padded([p.sequence for p, _ in partners], self.pad)
            tensors["KL_input_ids"] = kl_ids
            tensors["KL_attention_mask"] = kl_attention
            tensors["KL_completion_mask"] = kl_mask
            tensors["ref_KL_logps"] = torch.tensor([value for _, value in partners])
        return tensors
