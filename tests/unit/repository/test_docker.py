from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

ROOT = Path(__file__).resolve().parents[3]
DOCKER = ROOT / "docker"
COMPOSE_FILES = ("compose.yaml", "compose.gpu.yaml")
VENV_BIN = Path(sys.executable).parent
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """The Dockerfile as (keyword, rest) with continued lines joined and comments dropped."""
    lines = [
        line
        for line in (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]


def stages() -> dict[str, list[Instruction]]:
    """Instructions by stage, in order."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for keyword, rest in instructions():
        if keyword == "FROM":
            current = found[rest.split(" AS ")[1]] = []
        current.append((keyword, rest))
    return found


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file with its variables at their defaults."""
    text = (DOCKER / name).read_text(encoding="utf-8")
    loaded = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    assert isinstance(loaded, dict)
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found = compose()["services"]
    assert isinstance(found, dict)
    return found


# ---- Dockerfile ---------------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say() -> None:
    command = [str(VENV_BIN / "hadolint"), "--no-color", str(DOCKER / "Dockerfile")]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_base_image_is_pinned_by_version_and_nothing_is_latest() -> None:
    outside = [
        rest
        for keyword, rest in instructions()
        if keyword == "FROM" and rest.split()[0] not in stages()
    ]
    assert len(outside) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+ AS base", outside[0])
    images = {service["image"] for service in services().values()}
    assert images == {f"pawl:cpu-{_version()}"}
    assert ":latest" not in (DOCKER / "compose.yaml").read_text(encoding="utf-8")


def _version() -> str:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    assert isinstance(version, str)
    return version


def test_each_image_installs_the_lock_file_that_scripts_install_would_choose() -> None:
    install = (ROOT / "scripts/install").read_text(encoding="utf-8")
    assert '--no-deps -r "requirements/$set.lock"' in install
    for name, instruction in stages().items():
        wanted = {"cpu": {"cpu"}, "gpu": {"gpu"}, "wheel": {"cpu"}}.get(name, set())
        assert {
            s for _, rest in instruction for s in re.findall(r"requirements/(\w+)\.lock", rest)
        } == wanted
    for name in ("cpu", "gpu"):
        runs = [rest for keyword, rest in stages()[name] if keyword == "RUN"]
        assert any(f"--no-deps -r requirements/{name}.lock" in rest for rest in runs)


def test_cpu_torch_comes_from_the_index_that_scripts_install_falls_back_to() -> None:
    argument = dict(instructions())["ARG"]
    install = (ROOT / "scripts/install").read_text(encoding="utf-8")
    assert argument.startswith("PAWL_TORCH_INDEX=")
    assert f"pytorch_index={argument.partition('=')[2]}\n" in install


def test_every_pip_install_is_exact() -> None:
    for keyword, rest in instructions():
        for command in re.findall(r"pip (?:install|wheel)[^&]*", rest if keyword == "RUN" else ""):
            assert "--no-deps" in command
            assert re.search(r"-r \S+|/dist/\*\.whl|--wheel-dir /dist \.", command), command


def test_every_copied_file_exists_and_passes_the_dockerignore() -> None:
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = [
        rest
        for keyword, rest in instructions()
        if keyword == "COPY" and not rest.startswith("--from=")
    ]
    assert copied
    for source in (s for rest in copied for s in rest.split()[:-1]):
        assert (ROOT / source).exists(), source
        assert {source, source.split("/")[0]} & allowed, f"{source} is not in the build context"


def test_the_wheel_stage_copies_all_that_setup_py_reads() -> None:
    copied = {s for k, rest in stages()["wheel"] if k == "COPY" for s in rest.split()[:-1]}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= copied
    assert {"configs", "pawl", "policies", "workers", "orchestrator"} <= copied


def test_images_run_as_a_user_without_rights_and_add_nothing_from_outside() -> None:
    assert "ADD" not in {keyword for keyword, _ in instructions()}
    for name in ("cpu", "gpu"):
        users = [rest for keyword, rest in stages()[name] if keyword == "USER"]
        assert users == ["1000:1000"]
        after = stages()[name][stages()[name].index(("USER", "1000:1000")) :]
        assert {keyword for keyword, _ in after} <= {"USER", "WORKDIR", "CMD"}
    assert "useradd --uid 1000 " in " ".join(rest for _, rest in stages()["base"])


def test_apt_leaves_no_lists_and_installs_no_recommendations() -> None:
    runs = [rest for keyword, rest in instructions() if keyword == "RUN" and "apt-get" in rest]
    assert runs
    for rest in runs:
        assert "--no-install-recommends" in rest
        assert rest.endswith("rm -rf /var/lib/apt/lists/*")


# ---- compose ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_files_follow_the_compose_specification(name: str) -> None:
    loaded = compose(name)
    assert set(PyCompose.from_json(json.dumps(loaded)).service_names()) == set(loaded["services"])


def test_the_compose_parser_would_notice_a_mistake() -> None:
    wrong = compose()
    wrong["services"]["worker"]["depends_on"]["head"]["condition"] = "service_healty"
    with pytest.raises(ValueError, match="service_healty"):
        PyCompose.from_json(json.dumps(wrong))


def test_builds_name_a_dockerfile_and_a_stage_that_exist() -> None:
    for service in services().values():
        build = service["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
        assert build["target"] in stages()


def test_ports_are_published_on_the_loopback_address_only() -> None:
    published = [port for service in services().values() for port in service.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:5000:5000", "127.0.0.1:8265:8265"]
    assert [s for s in services().values() if s.get("network_mode") or s.get("privileged")] == []


def test_every_ray_process_needs_the_token_and_it_comes_from_a_file() -> None:
    secrets = set(compose()["secrets"])
    users = {name for name, s in services().items() if s["command"][0] == "ray"}
    assert users == {"head", "worker", "run"}
    for name in users:
        service = services()[name]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        path = Path(service["environment"]["RAY_AUTH_TOKEN_PATH"])
        assert path.parent == Path("/run/secrets")
        assert service["secrets"] == [path.name]
        assert path.name in secrets
    assert "ray-token" in (DOCKER / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_containers_have_no_capabilities_and_can_gain_none() -> None:
    for service in services().values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_mounted_volumes_are_declared_and_owned_by_the_user_of_the_image() -> None:
    mounts = [
        mount.split(":") for service in services().values() for mount in service.get("volumes", [])
    ]
    assert {name for name, _ in mounts} == set(compose()["volumes"])
    owned = " ".join(rest for _, rest in stages()["base"])
    made = re.search(r"install -d -o pawl -g pawl ([^&]*)", owned)
    assert made is not None
    assert {path for _, path in mounts} <= set(made[1].split())


def test_what_others_wait_for_to_be_healthy_has_a_health_check() -> None:
    waits = [
        (name, on, how)
        for name, s in services().items()
        for on, how in s.get("depends_on", {}).items()
    ]
    assert waits
    for name, on, how in waits:
        assert on in services(), f"{name} waits for {on}"
        if how["condition"] == "service_healthy":
            assert services()[on]["healthcheck"]["test"][0] == "CMD"


def test_gpu_overrides_name_services_that_exist() -> None:
    assert compose("compose.gpu.yaml")["services"].keys() <= services().keys()


@pytest.mark.parametrize("name", ["head", "worker", "mlflow", "run"])
def test_the_options_used_are_options_of_the_installed_versions(name: str) -> None:
    command = services()[name]["command"]
    words = [
        w
        for w in command[: command.index("--") if "--" in command else None]
        if not w.startswith("--")
    ]
    options = {
        w.partition("=")[0] for w in command[len(words) :] if w.startswith("--") and w != "--"
    }
    if name == "run":
        options.discard("--runs-dir")
    done = subprocess.run(
        [VENV_BIN / words[0], *words[1:], "--help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    known = set(re.findall(r"--[a-z][a-z-]+", done.stdout))
    assert options - known == set(), shlex.join(command)


def test_the_run_service_starts_the_main_job_on_this_cluster() -> None:
    command = services()["run"]["command"]
    assert command[command.index("--") + 1 :] == [
        "pawl",
        "run",
        "quickstart",
        "cluster.address=head:6379",
        "tracking.uri=http://mlflow:5000",
        "--runs-dir=/runs",
    ]
    assert f"--port={6379}" in services()["head"]["command"]
    assert "--port=5000" in services()["mlflow"]["command"]
    assert any("mlflow:5000" in word for word in services()["mlflow"]["command"])
