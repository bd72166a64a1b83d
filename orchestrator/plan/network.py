"""The part of the preflight that is about the network: which ports a run opens, and whom it talks to."""

from __future__ import annotations

from orchestrator.config.run_config import RunConfig
from orchestrator.config.tracking_uri import redact
from orchestrator.plan.lines import Plan

_RAY_PORTS = (
    "control plane, raylet, object manager, agents (metrics, runtime environments) and "
    "one port for each worker"
)


def plan_network(config: RunConfig, plan: Plan) -> None:
    """Name every port that will listen, and every address that will be asked."""
    for line in listening(config):
        plan.add("ports", line)
    plan.add("run folder", seen_by(config))
    for each in config.components:
        if each.group != "judge":  # those are asked whether they answer
            for host in each.needs.hosts:
                plan.add("network", f"{each.setting} asks {redact(host)}")
    if config.tracking.enabled:
        plan.add("tracking", redact(config.tracking.uri))


def seen_by(config: RunConfig) -> str:
    """Return who must see the run folder, and what becomes of files where they do not."""
    cluster = config.cluster
    if cluster.backend == "inline" or cluster.address is None:
        ignored = "" if cluster.shared_folder else "; cluster.shared_folder: false changes nothing"
        return f"all workers run on this machine{ignored}"
    if cluster.shared_folder:
        return "every node of the cluster must see it at the same path; a node that does not ends the run at its start"
    return (
        "nodes need not see it: files travel through Ray, and each node keeps copies, at the same path, of what its "
        "workers asked for last"
    )


def listening(config: RunConfig) -> list[str]:
    """Return what will listen for connections, where, and who may connect.

    Example: `["none: everything runs in the driver"]`.
    """
    if config.cluster.backend == "inline":
        return ["none: everything runs in the driver"]
    address = config.cluster.address
    here = "127.0.0.1" if address is None else "the nodes of the cluster"
    found = [
        f"Ray on 127.0.0.1, chosen free at the start: {_RAY_PORTS}; only with the run's own token, no dashboard"
        if address is None
        else f"Ray at {address}, which is joined: workers listen on the nodes as that cluster is set up; with its token"
    ]
    if config.training.workers > 1:
        found.append(
            f"training group of {config.training.workers}: one meeting port and the links between workers, on {here}; "
            "no authentication of their own"
        )
    found += dict.fromkeys(port for each in config.components for port in each.needs.ports)
    found.append("MLflow: none, a run only sends; `pawl ui` listens on 127.0.0.1 while it runs")
    return found
