"""Every attack against every backend; and with one layer taken off, attacks that then succeed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from policies.base.errors import SandboxUnavailableError
from tests.attacks.endings import note
from tests.attacks.host_programs import ATTACKS
from tests.attacks.victims import ROOT, SETTINGS, Attack, Victims, open_victims
from workers.sandbox.policy import Layers, make_plan
from workers.sandbox.probe import probe
from workers.sandbox.settings import SandboxBackend

ALL = {attack.name: attack for group in ATTACKS.values() for attack in group}
BACKENDS: tuple[SandboxBackend, ...] = ("bwrap", "landlock")


def need(backend: SandboxBackend) -> None:
    """Skip where a backend cannot run at all; in CI that is a failure, because nothing would be proven."""
    try:
        reached = _probed(backend)
    except SandboxUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{backend} has to be tested in CI: {error}")
        pytest.skip(f"{backend}: {error}")
    assert reached == []


@cache
def _probed(backend: SandboxBackend) -> list[str]:
    return probe(make_plan(backend, SETTINGS, "need"))


@pytest.fixture(scope="module", params=BACKENDS)
def victims(request: pytest.FixtureRequest) -> Iterator[Victims]:
    need(request.param)
    with open_victims(request.param) as opened:
        opened.wait_for(list(ALL.values()))
        yield opened


def test_there_are_enough_attacks_and_no_name_stands_twice() -> None:
    assert len(ALL) == sum(len(group) for group in ATTACKS.values()) >= 50


@pytest.mark.parametrize("attack", ALL.values(), ids=lambda a: a.name.replace(" ", "-"))
def test_the_sandbox_holds_against(victims: Victims, attack: Attack) -> None:
    result, reached = victims.attack(attack)
    note(result.backend, attack.name, result, reached)
    assert reached == [], f"ended as {result.status.value}: {result.error}"
    assert result.backend in BACKENDS


NO_SECCOMP = Layers(seccomp=False)
NO_LANDLOCK = Layers(landlock=False)
NO_LIMITS = Layers(limits=False)
NO_WATCH = Layers(watch=False)
UNHURRIED = SETTINGS.model_copy(update={"wall_seconds": 20.0, "cpu_seconds": 10.0})
"""For attacks that must succeed: on a busy machine they take their time."""
MUTATIONS: dict[tuple[SandboxBackend, Layers], tuple[str, ...]] = {
    ("landlock", NO_SECCOMP): (
        "daemon by double fork",
        "change a file's mode",
        "send over UDP",
        "connect to a Unix socket",
        "slow the victim down",
        "watch files",
        "send from a datagram pair to a Unix socket",
        "hide descriptors in flight",
        "lock a library file",
        "hoard in locks of ranges",
    ),
    ("landlock", NO_LANDLOCK): (
        "read a secret",
        "write a file outside",
        "list the checkout",
        "remove a file",
        "read the users of the machine",
    ),
    ("landlock", NO_LIMITS): (
        "map without touching",
        "raise the memory limit",
        "hoard in socket buffers",
        "raise every limit",
    ),
    ("landlock", NO_WATCH): ("compute on in a thread after the cell",),
    ("bwrap", NO_SECCOMP): (
        "daemon by double fork",
        "a netlink socket",
        "outlive the parent",
        "enlarge a socket's buffer",
        "lock a range of a library file",
    ),
    ("bwrap", NO_LIMITS): (
        "map without touching",
        "raise the memory limit",
        "hoard in signals that wait",
    ),
    ("bwrap", NO_WATCH): (
        "compute on in a handler of a timer's signal",
        "hoard in empty files",
    ),
}


def named(value: object) -> str | None:
    """How pytest calls what is taken off."""
    return f"without {off(value)}" if isinstance(value, Layers) else None


def off(layers: Layers) -> str:
    return ", ".join(name for name, is_on in vars(layers).items() if not is_on)


@pytest.mark.parametrize(("backend", "layers"), MUTATIONS, ids=named)
def test_without_a_layer_attacks_reach_their_aim(backend: SandboxBackend, layers: Layers) -> None:
    need(backend)
    held = []
    with open_victims(backend, layers, UNHURRIED) as opened:
        for name in MUTATIONS[backend, layers]:
            result, reached = opened.attack(ALL[name])
            note(f"{backend} without {off(layers)}", name, result, reached)
            held += [] if reached else [name]
    assert held == [], "an attack that nothing holds must succeed, or the battery proves nothing"


@pytest.mark.parametrize(
    ("backend", "layers"),
    [
        key for key in MUTATIONS if key[1] is not NO_WATCH
    ],  # which hides nothing that a probe could meet
    ids=named,
)
def test_the_probe_refuses_a_plan_with_a_layer_off(backend: SandboxBackend, layers: Layers) -> None:
    need(backend)
    assert probe(make_plan(backend, SETTINGS, "mutant", layers)) != []


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_where_user_namespaces_are_forbidden_the_fallback_is_chosen_and_holds(every: int) -> None:
    need("bwrap")
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    forbidding = [bwrap, "--dev-bind", "/", "/", "--unshare-user", "--uid", "1000", "--gid", "1000"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.sandbox",
        "--attacks",
        "--json",
        "--backends",
        "auto",
        "--every",
        str(every),
    ]
    done = subprocess.run(
        [*forbidding, "--disable-userns", "--die-with-parent", "--", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["landlock"]["attacks"] >= len(ALL) // every
    assert report["landlock"]["reached"] == {}
    assert "inner layer alone" in done.stderr
