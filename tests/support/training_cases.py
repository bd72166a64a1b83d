"""A tiny real model and small jobs, for tests of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.base.records import PolicyVersion
from policies.base.seeds import derive_rng
from policies.examples.kinds import (
    Example,
    LabelledStep,
    PreferencePair,
    SupervisedExample,
    TokenSequence,
    TokenSpan,
    UnpairedExample,
)
from policies.objectives.loss import LOSSES, Loss, PairLoss, UnpairedLoss
from policies.objectives.reference import ReferencePart, ReferencePlan
from policies.storage.artifacts import file_sha256
from policies.storage.fake_model import write_fake_model
from policies.storage.policy_store import digest_of, weight_files
from workers.training.engine import (
    TRAINING_ENGINES,
    AdapterSettings,
    TrainingEngine,
    TrainingOptions,
    UpdateJob,
)

VOCABULARY = 60


def make_loss(name: str, **settings: Any) -> Loss:
    config: Any = LOSSES.parse({"type": name, **settings})
    loss: Loss = config.component(config)
    return loss


def pair_loss(name: str, **settings: Any) -> PairLoss:
    """A loss of pairs, with beta 0.1 unless said otherwise."""
    loss = make_loss(name, **{"beta": 0.1, **settings})
    assert isinstance(loss, PairLoss)
    return loss


def unpaired_loss(name: str, **settings: Any) -> UnpairedLoss:
    """A loss of unpaired examples, with beta 0.1 unless said otherwise."""
    loss = make_loss(name, **{"beta": 0.1, **settings})
    assert isinstance(loss, UnpairedLoss)
    return loss


def make_engine(
    name: str, loss: Loss, adapter: AdapterSettings | None = None, **options: Any
) -> TrainingEngine:
    # One thread: two of them on a tiny model mostly wait for each other, the more so beside other tests.
    threads = {"threads": 1} if name in ("trl", "torch") else {}
    config: Any = TRAINING_ENGINES.parse({"type": name, **threads})
    settings = {"precision": "fp32", "batch_size": 4, **options}
    engine: TrainingEngine = config.component(
        config, loss=loss, options=TrainingOptions(**settings), adapter=adapter
    )
    return engine


def write_tiny_model(path: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A two-layer Llama with random weights, a tokenizer of numbered words, and the skill of a fake policy."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=changes.pop("vocab_size", VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **changes,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w3"
    ).save_pretrained(path)
    (path / "fake_policy.json").write_text(json.dumps({"skill": 0.3}))
    return path


def write_model(engine: str, path: Path) -> Path:
    return write_fake_model(path, skill=0.3) if engine == "fake" else write_tiny_model(path)


def version(path: Path, number: int = 0) -> PolicyVersion:
    digest = digest_of({p.name: file_sha256(p) for p in weight_files(path)})
    return PolicyVersion(number=number, round=number, parent=None, path=str(path), digest=digest)


def make_job(policy: PolicyVersion, folder: Path, **changes: Any) -> UpdateJob:
    values: dict[str, Any] = {
        "round": 1,
        "policy": policy,
        "reference": ReferencePlan(parts=(ReferencePart(version=policy.number, weight=1.0),)),
        "reference_versions": (policy,),
        "logprobs": "recompute",
        "seed": 7,
        "output_dir": str(folder / "new"),
        "log_path": str(folder / "log.jsonl"),
        **changes,
    }
    return UpdateJob(**values)


def sequence(
    prompt: str,
    index: int,
    *,
    length: int | None = None,
    hole: bool = True,
    policy_version: int = 0,
) -> TokenSequence:
    """A sequence whose tokens depend on prompt and index; with a masked hole inside, as an observation makes."""
    prompt_rng, rng = derive_rng("prompt", prompt), derive_rng("completion", prompt, index)
    head = [prompt_rng.randrange(4, VOCABULARY) for _ in range(prompt_rng.randint(3, 6))]
    tail = [rng.randrange(4, VOCABULARY) for _ in range(length or rng.randint(5, 9))]
    mask = [1] * len(tail)
    if hole:
        mask[2] = 0
    return TokenSequence(
        trajectory_id=f"{prompt}.{index}",
        policy_version=policy_version,
        token_ids=(*head, *tail),
        loss_mask=(*([0] * len(head)), *mask),
        logprobs=(*([0.0] * len(head)), *(-4.0 * m for m in mask)),
    )


def pairs(count: int = 10, **changes: Any) -> list[Example]:
    return [
        PreferencePair(
            id=f"pair{i}",
            prompt_id=f"p{i}",
            chosen=sequence(f"p{i}", 0),
            rejected=sequence(f"p{i}", 1),
            margin=1.0,
            **changes,
        )
        for i in range(count)
    ]


def singles(count: int = 12, **changes: Any) -> list[Example]:
    """Four samples of each prompt side by side, every third one desirable."""
    return [
        UnpairedExample(
            id=f"single{i}",
            prompt_id=f"p{i // 4}",
            sequence=sequence(f"p{i // 4}", i),
            desirable=i % 3 == 0,
            score=float(i % 3 == 0),
            **changes,
        )
        for i in range(count)
    ]


def log_of(job: UpdateJob) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(job.log_path).read_text().splitlines()]


def weights_of(path: str | Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for file in weight_files(Path(path)):
        state.update(load_file(file))
    return state


def demonstrations(count: int = 10, **changes: Any) -> list[Example]:
    return [
        SupervisedExample(
            id=f"shown{i}", prompt_id=f"p{i}", sequence=sequence(f"p{i}", 0), **changes
        )
        for i in range(count)
    ]


def examples_of(kind: str) -> Sequence[Example]:
    makers = {"pair": pairs, "unpaired": singles, "supervised": demonstrations}
    return makers[kind]()


def turns_sequence(
    prompt: str,
    index: int,
    *,
    turns: Sequence[int] = (3, 4),
    observation: int = 3,
    trailing: int = 0,
    observation_seed: int = 0,
    policy_version: int = 0,
    labels: Sequence[bool] = (),
) -> TokenSequence:
    """A sequence of several policy turns with observations between them.

    Args:
        prompt: the prompt's tokens follow from it.
        index: the policy's tokens follow from it and the prompt.
        turns: tokens of each policy turn.
        observation: tokens of each observation.
        trailing: tokens of an observation after the last turn.
        observation_seed: the observations' tokens follow from it.
        policy_version: that sampled it.
        labels: of the first turns, each judged as one step.
    """
    prompt_rng, rng = derive_rng("prompt", prompt), derive_rng("turns", prompt, index)
    noise = derive_rng("observation", observation_seed, prompt, index)
    ids = [prompt_rng.randrange(4, VOCABULARY) for _ in range(prompt_rng.randint(3, 6))]
    mask, spans = [0] * len(ids), []
    for i, length in enumerate(turns):
        spans.append(TokenSpan(start=len(ids), end=len(ids) + length))
        ids += [rng.randrange(4, VOCABULARY) for _ in range(length)]
        mask += [1] * length
        seen = observation if i < len(turns) - 1 else trailing
        ids += [noise.randrange(4, VOCABULARY) for _ in range(seen)]
        mask += [0] * seen
    return TokenSequence(
        trajectory_id=f"{prompt}.{index}",
        policy_version=policy_version,
        token_ids=tuple(ids),
        loss_mask=tuple(mask),
        logprobs=tuple(-4.0 * m for m in mask),
        turns=tuple(spans),
        steps=tuple(
            LabelledStep(start=span.start, end=span.end, desirable=label)
            for span, label in zip(spans, labels, strict=False)
        ),
    )


def turn_pairs(count: int = 6, **changes: Any) -> list[PreferencePair]:
    """Pairs of two-turn and three-turn trajectories."""
    return [
        PreferencePair(
            id=f"pair{i}",
            prompt_id=f"p{i}",
            chosen=turns_sequence(f"p{i}", 0, **changes),
            rejected=turns_sequence(f"p{i}", 1, turns=(2, 3, 3), **changes),
            margin=1.0,
        )
        for i in range(count)
    ]


def turn_singles(count: int = 12, **changes: Any) -> list[UnpairedExample]:
    """Two-turn trajectories, three of each prompt, every third one desirable, both turns judged as steps."""
    changes = {"labels": (True, False), **changes}
    return [
        UnpairedExample(
            id=f"single{i}",
            prompt_id=f"p{i // 3}",
            sequence=turns_sequence(f"p{i // 3}", i, **changes),
            desirable=i % 3 == 0,
            score=float(i % 3 == 0),
        )
        for i in range(count)
    ]
