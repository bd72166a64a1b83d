"""Microbatches in the words of TRL's trainers, for the losses that TRL computes itself."""

from __future__ import annotations

from typing import Any

_TOKENS = ("input_ids", "attention_mask", "completion_mask")


def pair_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what DPOTrainer reads: chosen rows first, then rejected ones. [2B, T]"""
    facts = inputs["facts"]
    chosen, rejected = facts["references"]["reference"].split(facts["sizes"])
    tokens = {name: inputs[name] for name in _TOKENS}
    return tokens | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


def unpaired_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what KTOTrainer reads: single rows, and mismatched ones where there are some. [N, T] and [K, T]"""
    facts = inputs["facts"]
    found = {name: inputs[name] for name in _TOKENS}
    found |= {"label": facts["labels"], "ref_logps": facts["references"]["reference"]}
    if (mismatched := inputs.get("mismatched")) is not None:
        found |= {f"KL_{name}": mismatched[name] for name in _TOKENS}
        found["ref_KL_logps"] = mismatched["references"]
    return found
