"""Tiny models of many architectures with random weights, for tests of what differs between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.training_cases import VOCABULARY, write_tiny_model

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3}
_PLAIN = {**_SIZES, "initializer_range": 0.3}

TRANSFORMING: dict[str, dict[str, Any]] = {
    "gemma2": {**_GROUPED, "final_logit_softcapping": 2.0},
    "granite": {**_GROUPED, "logits_scaling": 8.0},
    "cohere": {**_PLAIN, "logit_scale": 0.25},
    "modernbert-decoder": {**_PLAIN, "global_attn_every_n_layers": 2, "cls_token_id": 1},
    "hyperclovax": {**_GROUPED, "logits_scaling": 0.25},
    "minicpm3": {
        **_PLAIN,
        "dim_model_base": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}
"""Settings of architectures whose logits are more than their hidden states times their head."""
LINEAR: dict[str, dict[str, Any]] = {
    "llama": {**_GROUPED, "tie_word_embeddings": False},
    "qwen2": _GROUPED,
    "phi": _PLAIN,  # its head has a bias
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "initializer_range": 0.3,
    },
}
"""Settings of architectures whose head can be used by itself."""
NOISY: dict[str, dict[str, Any]] = {
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "init_std": 0.3,
        "dropout": 0.1,
        "layerdrop": 0.5,
        "pad_token_id": 0,
    },
    "llama": {**_GROUPED, "attention_dropout": 0.2},
    "starcoder2": {**_GROUPED, "residual_dropout": 0.2, "embedding_dropout": 0.2},
    "mixtral": {
        **_GROUPED,
        "router_jitter_noise": 0.3,
        "router_aux_loss_coef": 0.0,  # a part of the objective, not noise
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
"""Settings of architectures that are noisy in training mode, each in a way of its own."""


def tiny(kind: str, settings: dict[str, Any]) -> Any:
    """A model of an architecture, every weight random: also norms and biases that begin at 1 or 0."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def write_architecture(path: Path, kind: str, settings: dict[str, Any]) -> Path:
    """Folder of such a model, with the tokenizer of `write_tiny_model`."""
    write_tiny_model(path)
    tiny(kind, settings).save_pretrained(path)
    return path
