"""A low-rank adapter in the terms of PEFT."""

from __future__ import annotations

from typing import Any

from workers.training.job import AdapterSettings


def lora_config(adapter: AdapterSettings) -> Any:
    """The adapter in PEFT's terms."""
    from peft import LoraConfig

    targets = adapter.target_modules
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
