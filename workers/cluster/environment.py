"""Limits what a worker's environment may hold: secrets of the driver stay with the driver.

Workers host other people's verifiers, judges and tools. They need no token of the model hub, of the tracking
server or of a cloud, because the driver fetches models and sends metrics. What a judge needs is named by its
`api_key_env`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import contextmanager

_SECRET = re.compile(
    r"(HF|HUGGING_?FACE|HUGGINGFACEHUB)_\w*TOKEN|MLFLOW_TRACKING_(TOKEN|USERNAME|PASSWORD)|WANDB_API_KEY"
    r"|AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|SECURITY_TOKEN|WEB_IDENTITY_TOKEN_FILE|PROFILE)"
    r"|AWS_(SHARED_CREDENTIALS_FILE|CONFIG_FILE|CONTAINER_\w+)|AZURE_\w+|GOOGLE_\w+|GCP_\w+|GCLOUD_\w+|KUBECONFIG"
    r"|\w*(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIALS?)(_\w+)?|SSH_AUTH_SOCK"
    r"|\w*_DSN|DATABASE_URL|PGPASSFILE|NETRC",
    re.IGNORECASE,
)
RAY_TOKEN = frozenset({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"})
"""Ray's own: a worker process reads them while it starts, and nothing that it hosts may see them."""


def is_secret(name: str) -> bool:
    """Tell whether a variable of this name is kept from workers. Decided by the name: values are never looked at."""
    if name in RAY_TOKEN:
        return True
    return _SECRET.fullmatch(name) is not None


def scrub(environment: MutableMapping[str, str], *, keep: Collection[str] = ()) -> list[str]:
    """Remove secrets from `environment` except those named in `keep`; returns the names that went."""
    gone = sorted(name for name in environment if name not in keep and is_secret(name))
    for name in gone:
        del environment[name]
    return gone


@contextmanager
def without_secrets(*, keep: Collection[str] = ()) -> Iterator[None]:
    """This process's environment without secrets, for as long as processes are started that inherit it."""
    kept = {*keep, *RAY_TOKEN}
    saved = {name: os.environ[name] for name in os.environ if name not in kept and is_secret(name)}
    for name in saved:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(saved)
