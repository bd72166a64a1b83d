"""Log-probs of many architectures are those of their own forward pass; nearly certain tokens keep their gradient."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch

from policies.objectives.logprobs import _Head, head_is_linear, padded, token_scores
from tests.support.architectures import LINEAR, TRANSFORMING, tiny
from tests.support.training_cases import sequence


def scored_both_ways(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Our log-probs and those of the model's own logits, of the scored tokens of two sequences."""
    ids, attention, mask = padded([sequence("a", 0), sequence("b", 1, length=12)])
    ours = token_scores(model, ids, attention, mask).log_probs
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    own = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    return ours, own


@pytest.mark.parametrize("kind", TRANSFORMING)
def test_logits_that_are_scaled_capped_or_normalised_are_scored_as_the_model_scores_them(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(kind, TRANSFORMING[kind])
    with caplog.at_level(logging.INFO, "policies.objectives.logprobs"):
        ours, own = scored_both_ways(model)
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)
    assert "its own forward pass" in caplog.text
    ours.sum().backward()
    assert all(p.grad is not None for p in model.get_output_embeddings().parameters())


@pytest.mark.parametrize("kind", LINEAR)
def test_a_head_that_can_stand_alone_is_used_alone_and_scores_the_same(kind: str) -> None:
    model = tiny(kind, LINEAR[kind])
    ours, own = scored_both_ways(model)
    ids = torch.arange(4, 40)[None]
    assert head_is_linear(model, ids, torch.ones_like(ids))
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


def test_a_model_whose_head_cannot_be_had_is_scored_by_its_forward_pass() -> None:
    model = tiny("llama", LINEAR["llama"])
    type_of_it: Any = type(model)

    class Hidden(type_of_it):  # type: ignore[misc]
        def get_output_embeddings(self) -> None:
            return None

    model.__class__ = Hidden
    ours, own = scored_both_ways(model)
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


def test_a_change_of_the_logits_under_any_name_is_noticed() -> None:
    model = tiny("llama", LINEAR["llama"])
    type_of_it: Any = type(model)

    class Sharpened(type_of_it):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.02
            return output

    model.__class__ = Sharpened
    ours, own = scored_both_ways(model)
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


def test_the_comparison_leaves_the_model_in_the_mode_it_was_in_and_makes_no_gradient() -> None:
    model = tiny("gemma2", TRANSFORMING["gemma2"]).train()
    ids = torch.arange(4, 40)[None]
    assert not head_is_linear(model, ids, torch.ones_like(ids))
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def near_certain(p: float, rows: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and a head of 64 entries under which token 0 has a probability near `p`; exact in bf16."""
    gap = math.log(p / (1 - p) * 63)
    hidden = torch.zeros(rows, 16)
    hidden[:, 0] = 1.0
    weight = torch.zeros(64, 16)
    weight[0, 0] = torch.tensor(gap).bfloat16().float()
    return hidden.bfloat16(), weight.bfloat16()


@pytest.mark.parametrize("saved_bytes", [1 << 30, 0], ids=["kept", "computed again"])
@pytest.mark.parametrize("p", [0.5, 0.99, 0.998, 0.9995, 0.9999])
def test_in_bf16_a_nearly_certain_token_keeps_its_gradient(
    p: float, saved_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policies.objectives.logprobs._SAVED_BYTES", saved_bytes)
    hidden, weight = near_certain(p)
    labels, grads = torch.zeros(8, dtype=torch.long), torch.linspace(0.3, 2.0, 8)

    def gradients(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        h, w = (x.detach().to(dtype).requires_grad_() for x in (hidden, weight))
        if dtype == torch.float64:
            log_probs = (h @ w.T).log_softmax(-1)[:, 0]
        else:
            head: Any = _Head
            log_probs = head.apply(h, w, None, labels, (False, False))[0]
        (log_probs * grads.to(log_probs.dtype)).sum().backward()
        assert h.grad is not None
        assert w.grad is not None
        return h.grad.double(), w.grad.double()

    for ours, exact in zip(gradients(torch.bfloat16), gradients(torch.float64), strict=True):
        at = exact[..., 0] if ours.shape[0] == 8 else exact[0]
        mine = ours[..., 0] if ours.shape[0] == 8 else ours[0]
        torch.testing.assert_close(mine, at, rtol=0.02, atol=0.0)
