"""The manifest for Kubernetes: its RayJob against a hand-made subset of KubeRay's schema, its pods against Kubernetes'.

KubeRay's own schema (the CRD) is on no package index. `RAY_JOB` below was written by hand from the field reference of
`ray.io/v1` (KubeRay 1.6, docs.ray.io "KubeRay CRD API reference") and the Go types behind it: every field that the
manifest uses, with its type, and what those types require. No KubeRay operator has run the manifest.
"""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = ROOT / "docker" / "kuberay" / "rayjob.yaml"
KUBERNETES = "1.33"
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
POD = {"type": "object", "required": ["spec"]}  # Kubernetes' own schema checks the rest


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    """An object without other fields: the API server drops what it does not know, silently."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


GROUP = {
    "groupName": {"type": "string"},
    "replicas": COUNT,
    "minReplicas": COUNT,
    "maxReplicas": COUNT,
    "rayStartParams": TEXTS,
    "template": POD,
}
CLUSTER = closed(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    headGroupSpec=closed(
        ["template", "rayStartParams"],
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=TEXTS,
        template=POD,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": closed([name for name in GROUP if name != "replicas"], **GROUP),
    },
)
RAY_JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata={"type": "object", "required": ["name"]},
    spec=closed(
        ["entrypoint", "rayClusterSpec"],
        entrypoint={"type": "string"},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        submitterConfig=closed([], backoffLimit=COUNT),
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        submitterPodTemplate=POD,
        rayClusterSpec=CLUSTER,
    ),
)


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


def ray_job() -> dict[str, Any]:
    return next(d for d in documents() if d["kind"] == "RayJob")


def templates() -> dict[str, dict[str, Any]]:
    """Pod templates by what they are for."""
    spec = ray_job()["spec"]
    found = {
        "submitter": spec["submitterPodTemplate"],
        "head": spec["rayClusterSpec"]["headGroupSpec"]["template"],
    }
    return found | {
        g["groupName"]: g["template"] for g in spec["rayClusterSpec"]["workerGroupSpecs"]
    }


def check_pod(template: dict[str, Any]) -> None:
    whole = {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {"name": "pod"},
        "template": template,
    }
    kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_the_ray_job_has_only_fields_of_our_hand_made_subset_of_kuberays_schema() -> None:
    wrong = jsonschema.Draft202012Validator(RAY_JOB).iter_errors(ray_job())
    assert [f"{e.json_path}: {e.message}" for e in wrong] == []


@pytest.mark.parametrize("name", ["submitter", "head", "rollout", "train"])
def test_pods_follow_the_schema_of_kubernetes(name: str) -> None:
    check_pod(templates()[name])


def test_the_other_documents_follow_the_schema_of_kubernetes() -> None:
    others = [d for d in documents() if d["kind"] != "RayJob"]
    assert [d["kind"] for d in others] == ["PersistentVolumeClaim"]
    for document in others:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_both_schemas_would_notice_a_mistake() -> None:
    job = ray_job()
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(job, RAY_JOB)
    template = copy.deepcopy(templates()["head"])
    template["spec"]["containers"][0]["mounts"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="mounts"):
        check_pod(template)


def test_every_ray_container_has_the_token_from_the_secret_and_none_has_its_text() -> None:
    for name, template in templates().items():
        spec = template["spec"]
        volume = next(v for v in spec["volumes"] if v["name"] == "ray-token")
        assert volume["secret"]["secretName"] == "pawl-ray-token"
        for container in spec["containers"]:
            env = {e["name"]: e.get("value") for e in container["env"]}
            assert env["RAY_AUTH_MODE"] == "token", name
            mount = next(m for m in container["volumeMounts"] if m["name"] == "ray-token")
            assert env["RAY_AUTH_TOKEN_PATH"] == mount["mountPath"] + "/token", name
            assert "RAY_AUTH_TOKEN" not in env
    assert "Secret" not in [d["kind"] for d in documents()], "a secret is made, never committed"


def test_the_run_folder_lies_on_a_volume_that_every_node_mounts() -> None:
    claim = next(d for d in documents() if d["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, template in templates().items():
        if name == "submitter":
            continue
        volumes = {v["name"]: v for v in template["spec"]["volumes"]}
        mounts = {m["mountPath"]: m for m in template["spec"]["containers"][0]["volumeMounts"]}
        shared = volumes[mounts["/runs"]["name"]]
        assert shared["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"


def test_containers_run_as_an_ordinary_user_without_rights() -> None:
    for template in templates().values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["automountServiceAccountToken"] is False
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["capabilities"] == {"drop": ["ALL"]}


def test_a_job_that_is_tried_again_resumes_with_the_same_command() -> None:
    from orchestrator.config.files import load_config

    spec = ray_job()["spec"]
    assert spec["backoffLimit"] > 0
    words = shlex.split(spec["entrypoint"])
    assert words[:3] == ["pawl", "run", "quickstart"]
    assert {"--or-resume", "--supervise", "--name"} <= set(words)
    overrides = [w for w in words if "=" in w]
    config = load_config("quickstart", overrides).config
    assert config.cluster.address == "auto"
    replicas = {g["groupName"]: g["replicas"] for g in spec["rayClusterSpec"]["workerGroupSpecs"]}
    assert config.rollout.workers == replicas["rollout"]


def test_custom_resources_of_the_groups_are_json_as_ray_start_reads_it() -> None:
    for group in ray_job()["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        # KubeRay puts the value into a shell command line: one level of quoting is the shell's.
        (text,) = shlex.split(group["rayStartParams"]["resources"])
        assert json.loads(text) == {group["groupName"]: 1}
