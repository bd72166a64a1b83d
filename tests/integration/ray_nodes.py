"""A Ray cluster of several nodes on this machine, in a process of its own.

Usage: ray_nodes.py NUM_WORKER_NODES CPUS_EACH. Prints one JSON line, {"address": ..., "raylets": {node id: pid}},
at the start and after each line "add" on its input (which starts one more node); ends with its input. The nodes of
the start have a resource (`only0`, ...) and a label (`pool`: `pool0`, ...) each.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster


def main() -> None:
    count, cpus = int(sys.argv[1]), int(sys.argv[2])
    # The head has no CPUs: the driver lives there, the workers do not.
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for number in range(count):
        own: dict[str, Any] = {
            "resources": {f"only{number}": 4},
            "labels": {"pool": f"pool{number}"},
        }
        cluster.add_node(num_cpus=cpus, **own)
    tell(cluster)
    for line in sys.stdin:
        assert line.strip() == "add"
        cluster.add_node(num_cpus=cpus)
        tell(cluster)
    cluster.shutdown()


def tell(cluster: Cluster) -> None:
    raylets = {
        node.node_id: node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes
    }
    sys.stdout.write(json.dumps({"address": cluster.address, "raylets": raylets}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
