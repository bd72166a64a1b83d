"""The preflight: what it measures, what it calls a problem, and that it starts and writes nothing."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.files import load_config
from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan, refuse_what_cannot_run
from orchestrator.plan.model import read_model
from orchestrator.plan.preflight import make_plan
from orchestrator.plan.sizes import memory_text
from policies.base.errors import ConfigurationError, InputError
from policies.storage.safetensors_header import read_header
from tests.support.judge_server import judge_server
from workers.cluster.machine import Machine, this_machine

MODEL_CONFIG = {
    "max_position_embeddings": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "vocab_size": 100,
}


def write_safetensors(path: Path, shapes: Mapping[str, list[int]], *, cut: int = 0) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end - cut))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory with all that a plan looks at."""
    path = tmp_path / "model"
    path.mkdir()
    write_safetensors(path / "model.safetensors", {"a": [10, 5], "b": [7]})
    (path / "config.json").write_text(json.dumps(MODEL_CONFIG))
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 99}}}))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    return path


def config(model: Path, *overrides: str) -> RunConfig:
    small = [
        "rollout.max_tokens=48",
        "prompts.per_round=8",
        "tracking.enabled=false",
        f"policy.model={model}",
    ]
    return load_config("quickstart", ["rollout.engine={type: vllm}", *small, *overrides]).config


def planned(model: Path, tmp_path: Path, *overrides: str, elsewhere: bool = False) -> Plan:
    return make_plan(
        config(model, *overrides), run_folder=tmp_path / "runs" / "x-1", elsewhere=elsewhere
    )


def problems(plan: Plan) -> str:
    return "\n".join(f"{line.what}: {line.found}" for line in plan.of("problem"))


def found(plan: Plan, what: str) -> str:
    return "\n".join(line.found for line in plan.lines if line.what == what)


def test_a_plan_that_fits_writes_nothing(model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = planned(model, tmp_path)
    assert problems(plan) == ""
    assert plan.fits
    assert sorted(tmp_path.rglob("*")) == before
    refuse_what_cannot_run(plan)


def test_parameters_come_from_the_header_alone(model: Path) -> None:
    facts = read_model(model)
    assert facts.parameters == 57  # 10 x 5 + 7
    # keys and values x 2 layers x 2 heads x 8 per head x 2 bytes
    assert facts.cache_bytes_per_token("bfloat16") == 2 * 2 * 2 * 8 * 2
    assert facts.context_tokens == 128


def test_a_cut_off_weight_file_is_a_problem(model: Path, tmp_path: Path) -> None:
    write_safetensors(model / "model.safetensors", {"a": [10, 5]}, cut=8)
    assert "model.safetensors is cut off" in problems(planned(model, tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": {}}',
    ],
)
def test_a_file_that_is_not_safetensors_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_header(path)


@pytest.mark.parametrize(
    ("remove", "expected"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer files"),
        ("tokenizer_config.json", "has no chat template"),
        ("model.safetensors", "no weights"),
    ],
)
def test_a_missing_file_of_the_model_is_named(
    model: Path, tmp_path: Path, remove: str, expected: str
) -> None:
    (model / remove).unlink()
    text = problems(planned(model, tmp_path))
    assert expected in text
    assert "policy.model" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"vocab_size": 50}, "the tokenizer knows 100 tokens, the model 50"),
        ({"auto_map": {"AutoModel": "x.y"}}, "Python code of its own"),
        ({"max_position_embeddings": 40}, "but the limit is 40"),
    ],
)
def test_what_the_model_says_of_itself_is_checked(
    model: Path, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    (model / "config.json").write_text(json.dumps({**MODEL_CONFIG, **change}))
    assert expected in problems(planned(model, tmp_path))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("policy.model=/nowhere/model", "no such model directory"),
        ("rollout.engine.tensor_parallel_size=3", "does not divide the model's 4 attention heads"),
        ("rollout.engine.tensor_parallel_size=2", "asks for 0 GPU"),
        ("rollout.workers=1000", "CPUs: needs"),
        ("prompts.per_round=1000", "prompts.train has 97"),
        ("prompts.train={type: jsonl, path: /nowhere.jsonl}", "prompts.train: "),
        (
            "prompts.train={type: arithmetic, split: all}",
            "24 held-out prompts are training prompts too",
        ),
    ],
)
def test_each_thing_that_cannot_work_is_a_problem(
    model: Path, tmp_path: Path, override: str, expected: str
) -> None:
    plan = planned(model, tmp_path, override)
    assert expected in problems(plan)
    with pytest.raises(ConfigurationError):
        refuse_what_cannot_run(plan)


def test_overlap_can_be_allowed(model: Path, tmp_path: Path) -> None:
    plan = planned(
        model,
        tmp_path,
        "prompts.train={type: arithmetic, split: all}",
        "prompts.allow_overlap=true",
    )
    assert plan.fits
    assert "training prompts too" in plan.of("warning")[0].found


def test_a_gpu_config_is_refused_without_a_gpu_unless_it_is_for_elsewhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.plan.preflight.this_machine", lambda: Machine(4, 8 << 30, 8 << 30, ())
    )
    plan = planned(model, tmp_path, "rollout.resources.num_gpus=1")
    assert "needs 1 GPU, this machine has 0" in problems(plan)
    assert planned(model, tmp_path, "rollout.resources.num_gpus=1", elsewhere=True).fits
    assert planned(
        model, tmp_path, "rollout.resources.num_gpus=1", "cluster.address=host:6379"
    ).fits


@pytest.mark.parametrize(
    ("capability", "refused"),
    [
        (7.0, {"policy.dtype", "training.precision"}),
        (7.5, {"policy.dtype", "training.precision"}),
        (8.0, set()),
        (None, set()),
    ],
)
def test_bfloat16_is_refused_on_a_gpu_that_does_not_compute_in_it_and_only_there(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: float | None,
    refused: set[str],
) -> None:
    known = () if capability is None else (capability,)
    machine = Machine(4, 8 << 30, 8 << 30, (8 << 30,), known)
    monkeypatch.setattr("orchestrator.plan.preflight.this_machine", lambda: machine)
    on_gpu = ["policy.dtype=bfloat16", "training.precision=bf16"]
    said = found(planned(model, tmp_path, *on_gpu), "number format")
    assert {w for w in ("policy.dtype", "training.precision") if f"Set by: {w}." in said} == refused
    for line in said.splitlines():
        assert f"its compute capability is {capability:g}" in line
        assert "Fix: use f" in line  # float16 or float32, fp32
    assert found(planned(model, tmp_path), "number format") == ""  # auto takes another one
    on_cpu = ["rollout.resources.num_gpus=0", "training.resources.num_gpus=0"]
    said = found(planned(model, tmp_path, *on_gpu, *on_cpu), "number format")
    assert "compute capability" not in said  # there it works
    assert found(planned(model, tmp_path, *on_gpu, elsewhere=True), "number format") == ""
    remedy = ["policy.dtype=float16", "training.precision=fp32"]
    assert found(planned(model, tmp_path, *remedy), "number format") == ""


def test_float16_is_refused_on_a_cpu_wherever_the_run_is_for(model: Path, tmp_path: Path) -> None:
    on_cpu = ("policy.dtype=float16", "rollout.resources.num_gpus=0")
    for elsewhere in (False, True):
        plan = planned(model, tmp_path, *on_cpu, elsewhere=elsewhere)
        assert "a CPU cannot be used with float16" in problems(plan)


@pytest.mark.parametrize("knows", [True, False], ids=["new-driver", "old-driver"])
def test_what_the_driver_says_about_gpus_is_read_even_from_one_that_knows_no_capabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    old = "" if knows else 'case "$1" in *compute_cap*) echo "not a valid field"; exit 2;; esac\n'
    row = '*compute_cap*) echo "81559, 9.0"; echo "16384, 7.0";; *) echo 81559; echo 16384;;'
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\n{old}case "$1" in {row} esac\n')
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("workers.cluster.gpus._torch_is_for_cpus", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = this_machine()
    assert machine.gpu_bytes == (81559 << 20, 16384 << 20)
    assert machine.gpu_capabilities == ((9.0, 7.0) if knows else ())


def test_too_little_memory_or_disk_is_a_problem(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.plan.preflight.this_machine", lambda: Machine(4, 1 << 20, 1 << 20, ())
    )
    monkeypatch.setattr("orchestrator.plan.preflight.free_disk", lambda path: 1000)
    text = problems(planned(model, tmp_path))
    assert "memory: about" in text
    assert "disk: about" in text
    assert planned(model, tmp_path, elsewhere=True).fits


@pytest.mark.parametrize(
    ("options", "size", "verdict"),
    [
        (["training.checkpoint_seconds=null"], None, "ok"),
        # 1,000,000 parameters x 4 bytes x (weights and two moments) x (the newest and the one being written)
        ([], "24 MB", "warning"),
        (["training.checkpoint_seconds=null", "training.checkpoint_steps=1"], "24 MB", "problem"),
        # 8 prompts x 8 samples = 64 examples: 8 steps of 8, so 7 steps lie behind the only one
        (["training.checkpoint_seconds=null", "training.checkpoint_steps=7"], "12 MB", "problem"),
        (["training.checkpoint_seconds=null", "training.checkpoint_steps=8"], None, "ok"),
        (["policy.adapter={rank: 16}"], "2 MB", "warning"),  # 16 / 256 of 24 MB
    ],
)
def test_checkpoints_inside_an_update_count_at_their_peak(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    size: str | None,
    verdict: str,
) -> None:
    write_safetensors(model / "model.safetensors", {"a": [1000, 1000]})
    rest = ["rounds=1", "rollout.samples_per_prompt=8", "training.batch_size=8"]
    (line,) = (x for x in planned(model, tmp_path, *rest, *options).lines if x.what == "disk")
    assert ("for checkpoints meanwhile" in line.found) is (size is not None)
    if size is not None:
        assert f"and up to {size} for checkpoints" in line.found
    assert line.verdict == "ok"
    assert "5 MB in all" in line.found
    enough = 5_800_000  # for all but the checkpoints
    monkeypatch.setattr("orchestrator.plan.preflight.free_disk", lambda path: enough)
    (line,) = (x for x in planned(model, tmp_path, *rest, *options).lines if x.what == "disk")
    assert line.verdict == verdict, line.found
    assert ("Fix: make room, or give another --runs-dir" in line.found) is (verdict != "ok")


def test_a_place_that_cannot_be_written_to_is_a_problem(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan = make_plan(config(model), run_folder=tmp_path / "file" / "runs" / "x-1")
    assert "cannot be written to" in problems(plan)


def test_a_hub_model_that_is_not_here_is_a_warning_and_offline_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Path("nobody/no-such-model")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert planned(hub, tmp_path).fits
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in problems(planned(hub, tmp_path))


def test_a_judge_whose_key_is_not_set_is_a_problem_that_names_the_variable(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judge_server(key="k") as server:
        backend = f"{{type: openai, base_url: '{server.url}', model: judge-small, api_key_env: PAWL_TEST_KEY}}"
        judge = f"judges=[{{type: pairwise, backend: {backend}}}]"
        monkeypatch.delenv("PAWL_TEST_KEY", raising=False)
        assert "PAWL_TEST_KEY is not set" in problems(planned(model, tmp_path, judge))
        monkeypatch.setenv("PAWL_TEST_KEY", "k")
        assert planned(model, tmp_path, judge).fits


def test_lora_and_recomputed_references_change_the_memory(model: Path, tmp_path: Path) -> None:
    write_safetensors(model / "model.safetensors", {"a": [1000, 100]})
    full = found(planned(model, tmp_path), "memory")
    assert "trainer 2 MB" in full  # 100,000 parameters x 16 bytes
    assert "reference" not in full
    assert "reference 400 kB" in found(
        planned(model, tmp_path, "training.reference={type: initial}"), "memory"
    )
    assert "trainer 500 kB" in found(
        planned(model, tmp_path, "policy.adapter={rank: 16}"), "memory"
    )


def test_this_machine_has_something() -> None:
    machine = this_machine()
    assert machine.cpus >= 1
    assert 0 < machine.available_bytes <= machine.memory_bytes


@pytest.mark.parametrize(
    ("size", "text"), [(5, "5 B"), (1500, "2 kB"), (269e6, "269 MB"), (3.14e9, "3.1 GB")]
)
def test_sizes_are_said_for_people(size: float, text: str) -> None:
    assert memory_text(size) == text


def test_sampling_settings_of_the_models_folder_are_named_as_not_used(
    model: Path, tmp_path: Path
) -> None:
    assert found(planned(model, tmp_path), "generation settings") == ""
    settings = {"eos_token_id": [2], "do_sample": True, "repetition_penalty": 1.1, "top_k": 20}
    (model / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    told = found(planned(model, tmp_path), "generation settings")
    assert "not used: repetition_penalty: 1.1, top_k: 20." in told
    assert "eos_token_id: " not in told
    assert problems(planned(model, tmp_path)) == ""
    (model / "generation_config.json").write_text("[1]", encoding="utf-8")
    assert found(planned(model, tmp_path), "generation settings") == ""
