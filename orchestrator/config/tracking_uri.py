"""The address of the tracking server: checked without MLflow, made absolute, and never shown with its password."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from policies.base.errors import ConfigurationError, explain
from policies.base.redaction import redact_secrets

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

_USER_PART = re.compile(r"(?<=://)[^/\s'\"]*@")


def redact(text: str, uri: str = "") -> str:
    """Remove secrets, and user names and passwords of addresses, from a text.

    Args:
        text: anything that may quote an address, such as a message of MLflow.
        uri: the tracking URI; its password is also removed where it stands alone.

    Example:
        >>> redact("no answer from https://ann:s3cret@host/x", "https://ann:s3cret@host")
        'no answer from https://***@host/x'
    """
    for secret in _secrets(uri):
        text = text.replace(secret, "***")
    return redact_secrets(_USER_PART.sub("***@", text))


def _secrets(uri: str) -> list[str]:
    """The password of `uri` in every spelling that a message may hold, longest first."""
    try:
        password = urlsplit(uri).password
    except ValueError:
        return []
    if not password:
        return []
    spellings = {password, unquote(password), quote(unquote(password), safe="")}
    return sorted(spellings, key=len, reverse=True)


def check_uri(uri: str) -> str:
    """Return `uri` when metrics can be sent to it.

    Raises:
        ConfigurationError: it is malformed, or of a kind that MLflow no longer writes to.
    """
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018 - urlsplit checks the port only when it is read
    except ValueError as error:
        raise _refusal(f"the tracking URI is malformed ({redact(str(error), uri)})", uri) from None
    scheme = parts.scheme.partition("+")[0]
    if scheme in SERVERS:
        if not parts.hostname:
            raise _refusal("the tracking URI names no host", uri)
    elif scheme == "sqlite":
        if sqlite_file(uri) is None:
            raise _refusal("the tracking URI names no SQLite file", uri)
    elif scheme not in DATABASES:
        raise _refusal("metrics cannot be sent to this kind of tracking URI", uri)
    return uri


def _refusal(what: str, uri: str) -> ConfigurationError:
    fix = "use sqlite:///mlflow.db for a file, or http(s)://HOST:PORT for a server"
    return ConfigurationError(explain(what, value=redact(uri, uri), where="tracking.uri", fix=fix))


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI; None for any other URI."""
    prefix, mark, path = uri.partition(":///")
    if prefix.partition("+")[0] != "sqlite" or not mark:
        return None
    path = path.partition("?")[0]
    return Path(path) if path and path != ":memory:" else None


def absolute_uri(uri: str, base: Path | None = None) -> str:
    """`uri` with a relative SQLite path taken from `base` (default: the current folder)."""
    path = sqlite_file(uri)
    if path is None or path.is_absolute():
        return uri
    prefix, _, rest = uri.partition(":///")
    _, mark, query = rest.partition("?")
    return f"{prefix}:///{(base or Path.cwd()) / path}{mark}{query}"


def artifact_root(uri: str) -> str | None:
    """Tell where a new experiment keeps its files: beside a SQLite database; a server decides for itself."""
    path = sqlite_file(uri)
    return None if path is None else (path.parent.absolute() / "mlartifacts").as_uri()
