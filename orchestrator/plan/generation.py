"""The part of the preflight that names the sampling settings of a model's folder, none of which a run takes over."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan
from orchestrator.plan.model import ModelFacts
from policies.storage.bounded_json import read_json
from policies.storage.model_folder import MAX_SETTINGS_BYTES

_NO_SETTING = {
    "transformers_version", "_from_model_config", "_commit_hash", "trl_version", "use_cache", "output_attentions",
    "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate",
}  # fmt: skip
"""What says nothing of which token is drawn."""
_TOKEN_IDS = {"eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"}
"""Ids of tokens: those that end a sequence are read, the others name what the tokenizer names."""
_OF_OLD_CONFIGS = {
    "temperature", "top_p", "top_k", "do_sample", "repetition_penalty", "min_length", "max_length", "typical_p",
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "num_beams", "length_penalty", "exponential_decay_length_penalty", "early_stopping",
}  # fmt: skip
"""Sampling settings that stood in config.json before there was a generation_config.json."""
_NEUTRAL = {"do_sample": (True,), "temperature": (1.0,), "top_p": (1.0,), "min_length": (0,)}
"""Values under which a run would draw the same."""


def plan_generation(config: RunConfig, plan: Plan, model: ModelFacts) -> None:
    """Add a line with what the folder sets and the run does not use; nothing where it sets nothing."""
    if config.hosting.scripted:
        return
    path = model.path / "generation_config.json"
    try:
        named = read_json(path, max_bytes=MAX_SETTINGS_BYTES) if path.is_file() else {}
    except (OSError, ValueError):
        named = {}
    old = {k: v for k, v in model.config.items() if k in _OF_OLD_CONFIGS}
    ignored = {k: v for k, v in {**old, **_settings(named)}.items() if _matters(k, v)}
    if ignored:
        told = ", ".join(f"{k}: {json.dumps(v)[:60]}" for k, v in sorted(ignored.items()))
        plan.add(
            "generation settings",
            f"of the model's folder, not used: {told}. Samples are drawn as rollout and evaluation say (temperature, "
            "top_p, top_k, max_tokens, stop); only eos_token_id is read",
        )


def _settings(named: object) -> dict[str, Any]:
    found = named if isinstance(named, dict) else {}
    return {k: v for k, v in found.items() if k not in _NO_SETTING | _TOKEN_IDS}


def _matters(name: str, value: object) -> bool:
    return value is not None and value not in _NEUTRAL.get(name, ())
