"""This process's place in a Ray cluster: started on loopback or joined, always with a token, and watched.

Ray's token is the only thing between its ports and whoever reaches them: they run any code for who has it. A cluster of
our own listens on loopback alone. When the control plane (GCS) dies, Ray's C++ code ends a driver after some time
without a Python exception; a thread here notices earlier, so that the run ends with a cause and can be resumed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from policies.base.errors import ClusterLostError, ConfigurationError, PawlError, explain
from workers.cluster.environment import without_secrets
from workers.cluster.private_folder import close_to_others, private_folder
from workers.cluster.ray import processes
from workers.cluster.ray.token import ensure_token, remove_orphaned_tokens

logger = logging.getLogger(__name__)

NAMESPACE = "pawl"
PROBE_SECONDS = 5.0
"""How long one question to the control plane may take."""
CONNECT_SECONDS = 10.0
"""How long a cluster's port may take to accept a connection."""
CLOSE_SECONDS = 30.0
"""How long leaving a cluster may take."""


class RaySession:
    """A connection to a Ray cluster, started here (`address` None) or joined."""

    def __init__(
        self,
        *,
        address: str | None,
        num_cpus: int | None,
        allow_insecure: bool = False,
        lost_after_seconds: float = 40.0,
        was_running: bool = False,
        keep: Collection[str] = (),
    ) -> None:
        """Start or join.

        Raises:
            ConfigurationError: the address is of a kind that is refused, nobody answers there, it refuses our
                token, or it lets everybody in.
            ClusterLostError: nobody answers, and the run had begun before (`was_running`): worth another try.
        """
        remove_orphaned_tokens()
        self.started_here = address is None
        self.lost_after_seconds = lost_after_seconds
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ours is to notice first: see the module's first lines.
        patience = str(round(max(120.0, 3 * lost_after_seconds)))
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", patience)
        if address is None:
            self._start(num_cpus, allow_insecure=allow_insecure, keep=keep)
        else:
            self._join(address, allow_insecure=allow_insecure, was_running=was_running)
        import ray

        self._processes = processes.of_the_cluster() if self.started_here else []
        """Looked at again in the end; by then the raylet may be gone, and its children would not be found."""
        self.gcs_address: str = ray.get_runtime_context().gcs_address
        self._heard = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()

    def _start(self, num_cpus: int | None, *, allow_insecure: bool, keep: Collection[str]) -> None:
        if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" and not allow_insecure:
            raise ConfigurationError(
                explain(
                    "Ray's token authentication is switched off, so anyone who reaches its ports could run code",
                    value=os.environ["RAY_AUTH_MODE"],
                    where="RAY_AUTH_MODE in the environment",
                    fix="unset it (Pawl makes a token of its own), or set cluster.allow_insecure: true",
                )
            )
        ensure_token()
        # Ray's own switch for machines where it must not listen on an outside address, whatever its name says;
        # `_node_ip_address` does not do it (127.0.0.1 is replaced by the outside address).
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        home = private_folder() / "ray"
        with without_secrets(keep=keep):
            told = self._init(None, num_cpus=num_cpus, include_dashboard=False, _temp_dir=str(home))
        # Ray opens both to everybody; the folder around them has kept everybody out meanwhile.
        for folder in (home, Path(told["session_dir"])):
            close_to_others(folder)
        import ray

        listens = ray.get_runtime_context().gcs_address.rpartition(":")[0]
        if not _is_loopback(listens):  # something had imported Ray before it could be told
            logger.warning(
                "Ray listens on %s and not on loopback alone; it asks for a token", listens
            )

    def _join(self, address: str, *, allow_insecure: bool, was_running: bool) -> None:
        if address.startswith("ray://"):
            raise ConfigurationError(
                explain(
                    "Ray Client addresses are not used: that protocol is pickle in both directions, and a driver "
                    "behind it is lost with its connection",
                    value=address,
                    where="cluster.address",
                    fix="submit the run to the cluster (`ray job submit ... -- pawl run CONFIG cluster.address=auto`), "
                    "or give the host:port of its control plane (usually port 6379)",
                )
            )
        _use_a_token_that_is_there()
        import ray

        try:
            if ":" in address:
                _connect(address)
                check_exposure(address, allow_insecure=allow_insecure)
            self._init(address)
            if ":" not in address:
                check_exposure(ray.get_runtime_context().gcs_address, allow_insecure=allow_insecure)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            if isinstance(error, PawlError):
                self._leave()
                raise
            raise _cannot_join(address, error, was_running=was_running) from error

    @staticmethod
    def _init(address: str | None, **kwargs: Any) -> dict[str, Any]:
        import ray

        context: Any = ray.init(
            address=address if address is not None else "local",
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **kwargs,
        )
        return dict(context.address_info)

    def check(self) -> None:
        """Return when the control plane answered lately.

        Raises:
            ClusterLostError: it has been silent for `lost_after_seconds`.
        """
        silent = time.monotonic() - self._heard
        if silent > self.lost_after_seconds:
            raise ClusterLostError(
                explain(
                    f"the Ray cluster's control plane ({self.gcs_address}) has not answered for {silent:.0f} s: it "
                    "died, or its node is gone or cut off",
                    value=self.lost_after_seconds,
                    where="cluster.lost_after_seconds",
                    fix="start the cluster again where it is not ours, then `pawl resume` (or run with --supervise): "
                    "finished shards are kept",
                )
            )

    def _watch(self) -> None:
        """Ask the control plane now and then; what it says is of no interest."""
        # What `ray health-check` uses. The public ways (ray.nodes() ...) block a thread for minutes when it is gone.
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.exceptions import RayError

        client = GcsClient(address=self.gcs_address)
        while not self._ended.wait(2.0):
            try:
                client.check_alive([], timeout=PROBE_SECONDS)
            except (RayError, OSError, RuntimeError, ValueError) as error:
                logger.debug("the control plane did not answer: %s", error)
                continue
            self._heard = time.monotonic()

    def end_leftovers(self, run: str, epoch: int) -> list[str]:
        """Kill the actors that earlier epochs of `run` left on the cluster; returns their names."""
        import ray

        ended = []
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] != NAMESPACE or not actor["name"].startswith(f"{run}/"):
                continue
            if actor["name"].startswith(f"{run}/{epoch_name(epoch)}/"):
                continue
            with contextlib.suppress(ValueError):  # it ended by itself in this moment
                ray.kill(ray.get_actor(actor["name"], namespace=NAMESPACE), no_restart=True)
                ended.append(actor["name"])
        return ended

    def close(self) -> None:
        """Leave the cluster (and end it when it was started here), within a bounded time."""
        self._ended.set()
        own = processes.of_the_cluster() if self.started_here else []
        self._leave()
        left = processes.end([*self._processes, *own])
        if left:
            logger.debug("ended what Ray had left behind: processes %s", left)

    @staticmethod
    def _leave() -> None:
        import ray

        # Without its control plane, leaving can take for ever; the process ends soon after this anyway.
        leaving = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
        leaving.start()
        leaving.join(CLOSE_SECONDS)
        if leaving.is_alive():
            logger.warning("leaving the Ray cluster took over %.0f s: left alone", CLOSE_SECONDS)


def epoch_name(epoch: int) -> str:
    """The part of an actor's name that says which claim of the run it belongs to."""
    return f"e{epoch:06d}"


def check_exposure(address: str, *, allow_insecure: bool) -> None:
    """Refuse a cluster that other machines can reach and that lets everybody in.

    Raises:
        ConfigurationError: it answers without a token, and `allow_insecure` is off.
    """
    host = address.rpartition(":")[0].strip("[]")
    if allow_insecure or _is_loopback(host) or answers_without_token(address) is not True:
        return
    raise ConfigurationError(
        explain(
            "this Ray cluster lets in everybody who reaches its ports, and they can run any code on it",
            value=address,
            where="cluster.address",
            fix="start every node of the cluster with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file with a token>, "
            "and set both here; or, in a network that only you reach, set cluster.allow_insecure: true",
        )
    )


def answers_without_token(address: str) -> bool | None:
    """Tell whether the control plane at `address` answers a caller without a token; None when that cannot be told."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            return False if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return True


def _use_a_token_that_is_there() -> None:
    """Joining does not turn authentication on by itself, even with a token at hand."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" not in os.environ and (
        named or (Path.home() / ".ray" / "auth_token").is_file()
    ):
        os.environ["RAY_AUTH_MODE"] = "token"


def _connect(address: str) -> None:
    """Raise OSError when nobody accepts connections at `address`: Ray itself would try for a minute and more."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cannot_join(address: str, error: Exception, *, was_running: bool) -> PawlError:
    kind = ClusterLostError if was_running else ConfigurationError
    return kind(
        explain(
            f"cannot join the Ray cluster: {error}",
            value=address,
            where="cluster.address",
            fix="check that the cluster runs (`ray status`), that versions agree, and that RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH name its token; or set cluster.address: null",
        )
    )
