"""Secrets of the driver do not reach workers; what a run needs does."""

from __future__ import annotations

import os

import pytest

from orchestrator.config.run_config import RunConfig
from orchestrator.config.secrets import passed_secrets
from workers.cluster.environment import is_secret, scrub, without_secrets

SECRETS = [
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACEHUB_API_TOKEN",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_USERNAME",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_CLIENT_SECRET",
    "OPENAI_API_KEY",
    "WANDB_API_KEY",
    "GITHUB_TOKEN",
    "DB_PASSWORD",
    "SSH_AUTH_SOCK",
    "KUBECONFIG",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
]
NEEDED = [
    "PATH",
    "HOME",
    "LANG",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
    "VLLM_CPU_KVCACHE_SPACE",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "RAY_ADDRESS",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "NCCL_SOCKET_IFNAME",
    "MAX_NEW_TOKENS",
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_kept_from_workers(name: str) -> None:
    environment = {name: "canary", "PATH": "/bin"}
    assert scrub(environment) == [name]
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize("name", NEEDED)
def test_what_programs_need_is_left(name: str) -> None:
    assert not is_secret(name)


def test_a_secret_that_the_config_names_is_passed() -> None:
    environment = {"JUDGE_KEY": "canary", "HF_TOKEN": "canary"}
    assert scrub(environment, keep=["JUDGE_KEY"]) == ["HF_TOKEN"]
    assert environment == {"JUDGE_KEY": "canary"}


def test_processes_started_meanwhile_inherit_no_secret_and_afterwards_all_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("JUDGE_API_KEY", "canary")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/somewhere")
    with without_secrets(keep=["JUDGE_API_KEY"]):
        assert "HF_TOKEN" not in os.environ
        assert os.environ["JUDGE_API_KEY"] == "canary"
        assert "RAY_AUTH_TOKEN_PATH" in os.environ, "Ray's own processes need it"
    assert os.environ["HF_TOKEN"] == "canary"


def test_the_key_of_a_judge_is_passed_because_the_config_names_its_variable() -> None:
    judge = {
        "type": "rubric",
        "backend": {
            "type": "openai",
            "model": "m",
            "base_url": "https://judge.invalid/v1",
            "api_key_env": "JUDGE_API_KEY",
        },
    }
    source = {"type": "arithmetic", "held_out": 8}
    config = RunConfig.model_validate(
        {
            "policy": {"model": "m"},
            "prompts": {
                "train": source | {"split": "train"},
                "held_out": source | {"split": "held_out"},
            },
            "preferences": {"type": "right_vs_wrong"},
            "verifiers": [{"type": "numeric_match"}],
            "judges": [judge],
            "cluster": {"pass_secrets": ["MY_TOKEN"]},
        }
    )
    assert passed_secrets(config) == {"JUDGE_API_KEY", "MY_TOKEN"}
