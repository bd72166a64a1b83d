"""Masked log-probs: the one routine that scores tokens, for the policy in training and for any reference.

A difference of log-probs means something only when both sides come from the same routine, dtype and mask.
Logits are computed only where a token is scored, in blocks, and reduced in float32: the (tokens x vocabulary)
matrix of a whole batch is the largest tensor of an update, and prompts and observations do not need it.
Imports torch: import this module inside functions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from policies.base.errors import PawlError, TrainingError, boundary
from policies.examples.kinds import TokenSequence
from policies.examples.scored_batch import TokenScores as TokenScores

logger = logging.getLogger(__name__)

_BLOCK_ELEMENTS = 1 << 25
"""Logits held in float32 at a time: 128 MiB."""
_SAVED_BYTES = 1 << 30
"""Probabilities are kept for the backward pass up to this size, and computed again above it."""
_SHORTCUT = "pawl_head_shortcut"
"""Attribute of a model that has been compared: whether hidden states times output head are its logits."""
_COMPARED_TOKENS = 64
"""Most tokens of the sequence on which the two are compared."""
_TOLERANCES = ((False, 1e-3), (True, 0.05))
"""Largest difference in nats that is rounding: in the weights' own format, and where a kernel refuses that, bf16."""


def token_scores(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    mask: Tensor,
    *,
    statistics: bool = False,
    sum_squares: bool = False,
) -> TokenScores:
    """Score the tokens of a right-padded batch where `mask` is 1.

    Column 0 of the mask is ignored: nothing predicts the first token.

    Args:
        model: a causal language model of transformers (not wrapped by PEFT; its layers may be).
        input_ids: [N, T].
        attention_mask: 1 on real tokens. [N, T]
        mask: 1 on scored tokens. [N, T]
        statistics: also entropy, top1 and mean_logits.
        sum_squares: also log_sum_squares.
    """
    scored = mask[:, 1:].bool()
    labels = input_ids[:, 1:][scored]
    wanted = (statistics, sum_squares)
    if head_is_linear(model, input_ids, attention_mask):
        values = _by_head(model, input_ids, attention_mask, scored, wanted)
    else:
        logits = _own_logits(model, input_ids, attention_mask)
        values = _of_logits(logits[:, :-1][scored].float(), labels, wanted)
    spread = [
        None if v is None else v.new_zeros(scored.shape).masked_scatter(scored, v) for v in values
    ]
    log_probs, entropy, top1, mean_logits, log_sum_squares = spread
    assert log_probs is not None
    return TokenScores(log_probs, entropy, top1, mean_logits, log_sum_squares)


def head_is_linear(model: Any, input_ids: Tensor, attention_mask: Tensor) -> bool:
    """Tell whether the model's logits are its last hidden states times its output head, and nothing more.

    Models scale, cap, shift or normalise on that way, under names of their own, so it is tried and not guessed: once
    for each model, the log-probs of one sequence by head against those of the model's own forward pass. Where they
    differ, or the head cannot be had, the model is scored by its own forward pass, which computes logits everywhere.

    Args:
        model: a causal language model of transformers; the answer is kept on it.
        input_ids: sequences that it may read; the beginning of the first is tried. [N, T]
        attention_mask: 1 on real tokens. [N, T]
    """
    known = cast("bool | None", model.__dict__.get(_SHORTCUT))
    if known is None:
        tried = input_ids[0][attention_mask[0].bool()][:_COMPARED_TOKENS]
        known = _shortcut_agrees(model, tried[None])
        setattr(model, _SHORTCUT, known)
        if not known:
            logger.info(
                "%s does more than its output head to hidden states: it is scored by its own forward pass, which takes "
                "more memory and time",
                type(model).__name__,
            )
    return known


def _shortcut_agrees(model: Any, ids: Tensor) -> bool:
    attention, device = torch.ones_like(ids), ids.device.type
    scored, labels = attention[:, 1:].bool(), ids[0, 1:]
    was_training = model.training
    model.eval()
    try:
        for autocast, tolerance in _TOLERANCES:
            try:
                with (
                    boundary(TrainingError, "the output head cannot be used by itself"),
                    torch.no_grad(),
                    torch.autocast(device, torch.bfloat16, enabled=autocast),
                ):
                    own = _own_logits(model, ids, attention)[0, :-1].float().log_softmax(dim=-1)
                    by_head = _by_head(model, ids, attention, scored, (False, False))[0]
                    assert by_head is not None
                    gaps = (own.gather(1, labels[:, None]).squeeze(1) - by_head).abs()
                    return bool((gaps <= tolerance).all())
            except PawlError:
                continue
    finally:
        model.train(was_training)
    return False


def _own_logits(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits by the class's own forward pass, whatever stands in its place on this instance. [N, T, V]"""
    output = type(model).forward(
        model, input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    )
    return cast(Tensor, output.logits)


def _by_head(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    scored: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """Log-probs and statistics of the scored tokens, from the output head where they stand alone."""
    output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    head = model.get_output_embeddings()
    hidden = output.last_hidden_state[:, :-1][scored]
    bias = getattr(head, "bias", None)
    values = cast(Any, _Head).apply(hidden, head.weight, bias, input_ids[:, 1:][scored], wanted)
    return cast("tuple[Tensor | None, ...]", values)


def _of_logits(
    logits: Tensor, labels: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, ...]:
    log_softmax = logits.log_softmax(dim=-1)
    log_probs = log_softmax.gather(1, labels[:, None]).squeeze(1)
    with torch.no_grad():
        return (log_probs, *_statistics(logits, log_softmax, labels, wanted))


def _statistics(
    logits: Tensor, log_softmax: Tensor, labels: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, ...]:
    statistics, sum_squares = wanted
    squares = (2 * log_softmax).logsumexp(dim=-1) if sum_squares else None
    if not statistics:
        return None, None, None, squares
    entropy = -(log_softmax.exp() * log_softmax).sum(dim=-1)
    top1 = logits.argmax(dim=-1) == labels
    return entropy, top1, logits.mean(dim=-1), squares


class _Head(torch.autograd.Function):
    """Output head, log-softmax and selection in one, in blocks of rows, with the gradient written by hand.

    d log p(label) / d logits = onehot(label) - p, so one matrix of probabilities in the compute dtype is all that the
    backward pass needs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, ...]:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        rows, vocabulary = hidden.shape[0], weight.shape[0]
        with torch.autocast(device, enabled=False):
            inputs, matrix = hidden.to(dtype), weight.to(dtype)
            needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
            keep = needs_grad and rows * vocabulary * dtype.itemsize <= _SAVED_BYTES
            kept = inputs.new_empty((rows, vocabulary)) if keep else None
            parts: list[tuple[Tensor | None, ...]] = []
            for block in _blocks(rows, vocabulary):
                logits = _logits(inputs[block], matrix, bias)
                target = logits.gather(1, labels[block, None]).squeeze(1)
                parts.append(_reduce(logits, target, wanted, None if kept is None else kept[block]))
        columns = [None if c[0] is None else torch.cat(c) for c in zip(*parts, strict=True)]
        ctx.save_for_backward(inputs, matrix, bias, labels, kept, columns[0])
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(*(c for c in columns[1:] if c is not None))
        return tuple(columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, matrix, bias, labels, kept, log_probs = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        grad = grads[0].float()
        # 1 - p in float32: in bf16 the difference of the two is lost for a token that is nearly certain.
        at_label = (grad * -torch.expm1(log_probs)).to(matrix.dtype)
        grad_hidden = torch.empty_like(inputs)
        grad_weight = (
            torch.zeros_like(matrix, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        )
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        blocks = [slice(0, len(inputs))] if kept is not None else _blocks(len(inputs), len(matrix))
        for block in blocks:
            if kept is not None:
                errors = kept  # owned by this node, and read once: overwritten in place
            else:
                errors = _logits(inputs[block], matrix, bias).softmax(dim=-1).to(matrix.dtype)
            errors.mul_(-grad[block, None].to(matrix.dtype))
            errors.scatter_(1, labels[block, None], at_label[block, None])
            torch.mm(errors, matrix, out=grad_hidden[block])
            if grad_weight is not None:
                grad_weight += errors.T @ inputs[block]
            if grad_bias is not None:
                grad_bias += errors.float().sum(dim=0)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_dtype)
        return grad_hidden.to(hidden_dtype), grad_weight, grad_bias, None, None


def _blocks(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, _BLOCK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]


def _logits(inputs: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    logits = (inputs @ matrix.T).float()
    return logits if bias is None else logits.add_(bias)


def _reduce(
    logits: Tensor, target: Tensor, wanted: tuple[bool, bool], kept: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Reduce a block of logits, which it overwrites; fills `kept` with the probabilities."""
    statistics, sum_squares = wanted
    maximum = logits.amax(dim=-1)
    mean = logits.mean(dim=-1) if statistics else None
    logits.sub_(maximum[:, None])
    if not statistics and not sum_squares and kept is None:
        log_total = logits.exp_().sum(dim=-1).log()
        return target - maximum - log_total, None, None, None, None
    probabilities = logits.exp()
    total = probabilities.sum(dim=-1)
    log_total = total.log()
    squares = None
    if sum_squares:
        squares = probabilities.square().sum(dim=-1).log() - 2 * log_total
    if kept is not None:
        torch.div(
            probabilities, total[:, None], out=kept
        ) if kept.dtype == torch.float32 else kept.copy_(probabilities / total[:, None])
    log_probs = target - maximum - log_total
    if not statistics:
        return log_probs, None, None, None, squares
    entropy = log_total - probabilities.mul_(logits).sum(dim=-1) / total
    return log_probs, entropy, target >= maximum, mean, squares


@dataclass(frozen=True)
class SequenceScores:
    """Log-probs of sequences, in the order they were given."""

    per_token: list[Tensor]
    """Log-prob of each scored token, in order; float32 on the CPU. [scored tokens] each"""

    @property
    def sums(self) -> list[float]:
        """Log-prob of each sequence's scored tokens."""
        return [float(values.double().sum()) for values in self.per_token]


def sequence_logprobs(
    model: Any,
    sequences: Sequence[TokenSequence],
    *,
    precision: str = "fp32",
    tokens_per_batch: int = 4096,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> SequenceScores:
    """Log-probs of the scored tokens of `sequences`, without gradient.

    Sequences of similar length share a batch of at most `tokens_per_batch` padded tokens (at least one sequence).

    Args:
        model: a causal language model of transformers; put into evaluation mode and back.
        sequences: in any order.
        precision: `bf16` runs the forward pass under autocast, as training does; else `fp32`.
        tokens_per_batch: limit on rows times columns.
        on_batch: called after each batch with its number of sequences.
    """
    device = next(model.parameters()).device

    def score(ids: Tensor, attention: Tensor, mask: Tensor) -> TokenScores:
        return token_scores(model, ids.to(device), attention.to(device), mask.to(device))

    was_training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            return scored_in_batches(score, sequences, tokens_per_batch, on_batch)
    finally:
        model.train(was_training)


def scored_in_batches(
    score: Callable[[Tensor, Tensor, Tensor], TokenScores],
    sequences: Sequence[TokenSequence],
    tokens_per_batch: int = 4096,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> SequenceScores:
    """Log-probs of the scored tokens of `sequences` by a function of token ids, attention and loss mask. [N, T] each"""
    results: list[Tensor | None] = [None] * len(sequences)
    for rows in _length_batches(sequences, tokens_per_batch):
        ids, attention, mask = padded([sequences[row] for row in rows])
        values = score(ids, attention, mask).log_probs.float().cpu()
        for row, line, scored in zip(rows, values, mask[:, 1:].bool(), strict=True):
            results[row] = line[scored]
        on_batch(len(rows))
    return SequenceScores(per_token=cast("list[Tensor]", results))


def _length_batches(sequences: Sequence[TokenSequence], tokens_per_batch: int) -> list[list[int]]:
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row].token_ids))
    batches: list[list[int]] = []
    for row in order:
        longest = len(sequences[batches[-1][0]].token_ids) if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= tokens_per_batch:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(sequences: Sequence[TokenSequence], pad: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and loss mask of `sequences`, padded on the right. [N, T] each"""
    width = max(len(s.token_ids) for s in sequences)
    ids = torch.full((len(sequences), width), pad, dtype=torch.long)
    attention = torch.zeros_like(ids)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        length = len(sequence.token_ids)
        ids[row, :length] = torch.tensor(sequence.token_ids)
        attention[row, :length] = 1
        mask[row, :length] = torch.tensor(sequence.loss_mask)
    return ids, attention, mask
