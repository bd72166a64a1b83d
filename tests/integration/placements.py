"""Starts groups with different placements on a cluster and prints, as JSON, the nodes on which their workers run.

Usage: placements.py ADDRESS
"""

from __future__ import annotations

import json
import sys

from policies.base.errors import PlacementError
from workers.cluster.ray.cluster import RayCluster
from workers.cluster.seam import GroupSpec, Resources, Restarts

ASKED = {
    "spread": Resources(num_cpus=0.2, placement="spread"),
    "pack": Resources(num_cpus=0.2, placement="pack"),
    "custom": Resources(num_cpus=0.2, custom={"only1": 1}),
    "labels": Resources(num_cpus=0.2, labels={"pool": "pool0"}),
}

SIZES = {"custom": 1, "labels": 1}


class Worker:
    """Does nothing."""


def main() -> None:
    cluster = RayCluster(address=sys.argv[1])
    groups = {
        name: cluster.start_group(
            GroupSpec(name, Worker, size=SIZES.get(name, 2), resources=resources)
        )
        for name, resources in ASKED.items()
    }
    cluster.wait_ready(list(groups.values()), 200)
    found: dict[str, object] = {
        name: [slot.place.node for slot in group.slots if slot.place is not None]
        for name, group in groups.items()
    }
    nowhere = Resources(num_cpus=0.2, custom={"nowhere": 1})
    spec = GroupSpec("lost", Worker, resources=nowhere, restarts=Restarts(timeout_seconds=1))
    lost = cluster.start_group(spec)
    try:
        cluster.wait_ready([lost], 1.0)
    except PlacementError as error:
        found["refused"] = str(error)
    cluster.close()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
