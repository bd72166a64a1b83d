"""The report shows a run on one page, and model text on it can do nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from orchestrator.runs.report import write_report
from policies.base.records import RoundStatus
from tests.support.run_folders import make_run, start_run

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m | **b** [a](http://x)"


class Tags(HTMLParser):
    """Collects the tags and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_the_page_has_a_line_for_each_round_and_the_curve_of_the_held_out_score(
    tmp_path: Path,
) -> None:
    html, markdown = write_report(make_run(tmp_path / "q-1", rounds=3))
    page = html.read_text(encoding="utf-8")
    tags = parsed(page)
    assert tags.tags.count("circle") == 4
    points = re.search(r'polyline class="line" points="([^"]+)"', page)
    assert points is not None
    heights = [float(p.split(",")[1]) for p in points[1].split()]
    assert heights == sorted(heights, reverse=True)
    assert 'aria-label="pass@1 from 0.290 to 0.670"' in page
    rows = [
        line for line in markdown.read_text(encoding="utf-8").splitlines() if "improved" in line
    ]
    assert [row.split(" | ")[0:4] for row in rows] == [
        [f"| {r}", "improved", f"{r - 1} → {r}", str((0.29, 0.39, 0.55, 0.67)[r])]
        for r in (1, 2, 3)
    ]
    assert RoundStatus.UNTRAINED.value in tags.text


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "q-1", rounds=1))[0].read_text(encoding="utf-8")
    assert not {"src", "href"} & parsed(page).attributes
    assert "default-src 'none'" in page


def test_model_text_is_shown_and_not_run(tmp_path: Path) -> None:
    html, markdown = write_report(make_run(tmp_path / "q-1", rounds=1, extra_text=HOSTILE))
    page = html.read_text(encoding="utf-8")
    tags = parsed(page)
    assert "alert(1)" in tags.text
    assert not {"script", "img"} & set(tags.tags)
    assert "onerror" not in tags.attributes
    assert "\x1b" not in page
    text = markdown.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "[a](" not in text
    widths = {line.count(" | ") for line in text.splitlines() if "alert" in line}
    assert len(widths) <= 2


def test_a_name_that_is_markup_is_escaped(tmp_path: Path) -> None:
    page = write_report(start_run(tmp_path / "<b>q", experiment="<i>x</i>"))[0].read_text(
        encoding="utf-8"
    )
    assert "<h1>&lt;b&gt;q</h1>" in page
    assert "experiment &lt;i&gt;x" in page
    assert not {"b", "i"} & set(parsed(page).tags)


def test_kto_examples_are_shown_with_their_label(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "q-1", rounds=1, kind="unpaired")
    text = write_report(folder)[1].read_text(encoding="utf-8")
    assert "| prompt | completion | desirable |" in text


def test_conversations_are_shown_turn_by_turn_and_their_text_cannot_pass_for_a_turn(
    tmp_path: Path,
) -> None:
    folder = make_run(tmp_path / "q-1", rounds=1, tool_use=True, extra_text=HOSTILE)
    html, markdown = write_report(folder)
    page, text = html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")
    tags = parsed(page)
    # 8 held-out attempts and 6 pairs: 20 conversations with two policy turns, an observation and an ending
    assert [page.count(f'class="turn {kind}"') for kind in ("policy", "observation", "end")] == [
        40,
        20,
        20,
    ]
    assert page.count("python failed</span>") == page.count("python ok</span>") == 10
    assert "NameError: name 'x' is not defined" in tags.text
    assert "turn_limit, outcome 0.25" in tags.text
    assert not {"script", "img"} & set(tags.tags)
    assert "onerror" not in tags.attributes
    assert "\x1b" not in page + text
    assert "<script" not in text
    assert "**policy 1 (graded)**" in text
    assert "**b**" not in text


def test_a_run_without_a_finished_round_and_one_with_a_damaged_shard_still_have_a_report(
    tmp_path: Path,
) -> None:
    empty = write_report(start_run(tmp_path / "empty"))[0].read_text(encoding="utf-8")
    assert "0 rounds finished" in empty
    folder = make_run(tmp_path / "damaged", rounds=1)
    folder.round(1).shard(0).of("examples").write_bytes(b"rubbish")
    folder.round(1).evaluation.shard(0).of("feedback").write_bytes(b"rubbish")
    page = write_report(folder)[0].read_text(encoding="utf-8")
    assert "Held-out answers in round 0" in page
    assert "Examples that" not in page
