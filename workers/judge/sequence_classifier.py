"""A transformers sequence classifier that reads chats, many at a time: each output is what it is alone, unpadded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.base.errors import ConfigurationError, explain
from policies.base.records import Message, PolicyVersion
from policies.storage.policy_store import check_files
from workers.cluster.compute_threads import follow_threads
from workers.cluster.heartbeat import report_progress

Chat = Sequence[Message]


class SequenceClassifier:
    """One output of a loaded `AutoModelForSequenceClassification`."""

    def __init__(
        self,
        version: PolicyVersion,
        *,
        dtype: str,
        output: int | None = None,
        max_length: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Load the model onto a GPU, when there is one.

        Raises:
            ConfigurationError: its classifying head is not in the folder, it has other outputs, or no chat template.
        """
        follow_threads()
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        check_files(version)
        path = version.path
        self._tokenizer: Any = AutoTokenizer.from_pretrained(  # nosec B615 # a checked folder
            path, trust_remote_code=trust_remote_code
        )
        model: Any
        model, loaded = AutoModelForSequenceClassification.from_pretrained(  # nosec B615 # likewise
            path,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
        self._check(path, sorted(loaded["missing_keys"]), model.config.num_labels, output)
        self._device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self._model: Any = model.to(self._device).eval()
        self._text_config: Any = model.config.get_text_config()
        self._output = output or 0
        # What the model was trained with decides which position is read; without it any id that ends no chat will do.
        self._pad: int | None = self._text_config.pad_token_id
        positions = getattr(self._text_config, "max_position_embeddings", None)
        self._limit: int | None = max_length or positions

    def _check(self, path: str, missing: list[str], outputs: int, wanted: int | None) -> None:
        if missing:
            raise ConfigurationError(
                explain(
                    f"the folder has no weights for {missing[0]}: it is no reward model, its rewards would be chance",
                    value=path,
                    where="judges[...].model",
                    fix="name a model with a sequence classification head",
                )
            )
        if (wanted is None and outputs != 1) or (wanted or 0) >= outputs:
            raise ConfigurationError(
                explain(
                    f"the model has {outputs} outputs",
                    value=wanted,
                    where="judges[...].output",
                    fix=f"set output to a number from 0 to {outputs - 1}",
                )
            )
        if self._tokenizer.chat_template is None:
            raise ConfigurationError(
                explain(
                    "the reward model's tokenizer has no chat template, so what it was trained to read is not known",
                    value=path,
                    where="judges[...].model",
                    fix="put the template that it was trained with into its folder as chat_template.jinja",
                )
            )

    def outputs(self, chats: Sequence[Chat], *, batch_size: int) -> tuple[list[float | str], int]:
        """The output for each chat, in order, or why it has none; and the tokens of all that were read."""
        rows = [self._ids(chat) for chat in chats]
        found: dict[int, float | str] = {}
        fitting = []
        for index, row in enumerate(rows):
            if self._limit is not None and len(row) > self._limit:
                found[index] = (
                    f"task and answer have {len(row)} tokens, the reward model reads {self._limit}. Fix: lower "
                    "rollout.max_tokens, or raise judges[...].max_length as far as the model has positions"
                )
            elif not row:
                found[index] = "the reward model's chat template wrote nothing"
            else:
                fitting.append(index)
        fitting.sort(key=lambda i: len(rows[i]))  # a batch is padded to its longest
        for start in range(0, len(fitting), batch_size):
            chosen = fitting[start : start + batch_size]
            found.update(zip(chosen, self._forward([rows[i] for i in chosen]), strict=True))
            report_progress(verdicts=len(chosen))
        return [found[i] for i in range(len(chats))], sum(len(rows[i]) for i in fitting)

    def _ids(self, chat: Chat) -> list[int]:
        messages = [message.model_dump(mode="json") for message in chat]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        import torch

        width = max(map(len, rows))
        pad = self._pad if self._pad is not None else _unused_ending(rows)
        if len(rows) > 1:
            self._text_config.pad_token_id = pad
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
            ).logits
        self._text_config.pad_token_id = self._pad
        values: list[float] = logits[:, self._output].float().cpu().tolist()
        return values


def _unused_ending(rows: Sequence[Sequence[int]]) -> int:
    """The smallest id that is the last of no row: behind it, the end of every row can be told."""
    endings = {row[-1] for row in rows}
    return next(i for i in range(len(rows) + 1) if i not in endings)
