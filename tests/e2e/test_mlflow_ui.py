"""What a person sees in MLflow's own pages: the run with its rounds, the curve, the samples."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from orchestrator.config.sections import TrackingSettings
from orchestrator.runs.state import results_of
from orchestrator.tracking.mlflow_client import make_tracker
from orchestrator.tracking.tags import tracked_run
from tests.support.mlflow_server import MlflowServer
from tests.support.run_folders import RUN_ID, make_run, phase_seconds

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = " <img src=x onerror=\"document.title='owned'\">"
SLOW = 60_000
"""Milliseconds for a page of MLflow on a busy machine."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is not installed (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A run in a SQLite store, and MLflow's server on it."""
    place = tmp_path_factory.mktemp("ui")
    folder = make_run(place / "multiply-1", rounds=4, extra_text=HOSTILE)
    database = place / "mlflow.db"
    settings = TrackingSettings(uri=f"sqlite:///{database}", experiment="multiply")
    tracker = make_tracker(settings, folder, on_warning=pytest.fail)
    tracker.start(
        tracked_run(
            run_id=RUN_ID,
            name="multiply-1",
            experiment="multiply",
            config=json.loads(folder.config.read_text(encoding="utf-8")),
            config_digest="c0ffee",
            model_digest="beef",
            reference="refresh",
            resumed=False,
        )
    )
    for result in results_of(folder):
        tracker.round_finished(result, phase_seconds(result.round), folder.round(result.round))
    tracker.finish("FINISHED")
    with MlflowServer(place, database=database) as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1500, "height": 1000})
    opened.set_default_timeout(SLOW)
    expect.set_options(timeout=SLOW)
    yield opened
    opened.close()


def run_ids(database: Path) -> tuple[str, str, dict[str, str]]:
    """Experiment, parent run, and nested runs by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("multiply").experiment_id
    runs = {r.info.run_name: r.info.run_id for r in client.search_runs([experiment])}
    return experiment, runs.pop("multiply-1"), runs


def test_the_runs_table_shows_the_run_with_its_rounds_nested_in_it(
    server: MlflowServer, page: Page, tmp_path: Path
) -> None:
    experiment, _, _ = run_ids(server.database)
    page.goto(f"{server.uri}/#/experiments/{experiment}/runs")
    expect(page.get_by_text("multiply-1", exact=True).first).to_be_visible()
    expect(page.get_by_text("round 4", exact=True)).to_have_count(0)
    row = page.get_by_role("row").filter(has_text="multiply-1")
    row.get_by_role("button").first.click()
    for index in range(5):
        expect(page.get_by_text(f"round {index}", exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "runs.png")


def test_the_run_has_a_curve_of_held_out_pass_at_1_by_round(
    server: MlflowServer, page: Page, tmp_path: Path
) -> None:
    experiment, parent, _ = run_ids(server.database)
    page.goto(f"{server.uri}/#/experiments/{experiment}/runs/{parent}/model-metrics")
    expect(page.get_by_text("pass_at_1").first).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer .js-line").first).to_be_visible()
    page.screenshot(path=tmp_path / "curve.png")


def test_a_round_has_its_samples_as_a_table_and_their_text_does_nothing(
    server: MlflowServer, page: Page, tmp_path: Path
) -> None:
    experiment, _, rounds = run_ids(server.database)
    page.goto(
        f"{server.uri}/#/experiments/{experiment}/runs/{rounds['round 1']}/artifacts/samples.json"
    )
    expect(page.get_by_text("What is 2 times 3?").first).to_be_visible()
    expect(page.get_by_text("It is 6.").first).to_be_visible()
    expect(page.get_by_text("completion", exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "samples.png")
    assert page.title() != "owned"


def test_the_report_opens_in_the_browser(server: MlflowServer, page: Page, tmp_path: Path) -> None:
    page.goto((server.folder / "multiply-1" / "report.html").as_uri())
    expect(page.get_by_role("heading", name="multiply-1")).to_be_visible()
    expect(page.locator("svg circle")).to_have_count(5)
    assert page.title() == "multiply-1"
    page.screenshot(path=tmp_path / "report.png", full_page=True)
