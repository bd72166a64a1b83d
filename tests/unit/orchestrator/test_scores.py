"""Held-out scores as people read them: with their standard errors, in status and report."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.inspect.views.display import rounds_table
from orchestrator.runs.report import write_report
from orchestrator.runs.scores import final_line, pass_names, with_error
from policies.base.records import RoundResult, RoundStatus
from tests.support.run_folders import make_run


def result(index: int, **metrics: float) -> RoundResult:
    return RoundResult(
        round=index,
        status=RoundStatus.KEPT,
        before=0,
        after=index,
        reference="",
        metrics={name.replace("__", "/").replace("_at_", "@"): v for name, v in metrics.items()},
    )


def test_a_score_is_told_with_its_error_where_it_has_one() -> None:
    assert with_error({"eval/pass@1": 0.3912, "eval/pass@1_se": 0.0621}, "eval/pass@1") == (
        "0.391 +- 0.062"
    )
    assert with_error({"eval/length_tokens": 12.3456}, "eval/length_tokens") == "12.35"
    assert with_error({}, "eval/pass@1") == "-"


def test_errors_and_parts_are_no_pass_at_k_of_their_own() -> None:
    names = ("eval/pass@16", "eval/pass@2", "eval/pass@2_se", "eval/pass@1_complete", "eval/score")
    assert pass_names(dict.fromkeys(names, 0.0)) == ["eval/pass@2", "eval/pass@16"]


def test_the_number_to_report_is_the_one_that_no_decision_used() -> None:
    first = result(0, test__pass_at_1=0.3, test__pass_at_1_se=0.05)
    last = result(2, test__pass_at_1=0.7, test__pass_at_1_se=0.06)
    assert final_line([first, result(1), last]) == (
        "final pass@1 0.700 +- 0.060 on prompts that no decision used (at the start 0.300 +- 0.050)"
    )
    assert final_line([first, result(1)]) == "", "not measured at the end yet"
    again = result(2, final__pass_at_1=0.7, final__pass_at_1_se=0.06)
    assert "held-out prompts, once more" in final_line([result(0), again])


def test_the_table_puts_whole_answers_beside_the_share_that_was_cut_off() -> None:
    cut = result(
        1,
        eval__pass_at_1=0.3,
        eval__pass_at_1_se=0.05,
        eval__pass_at_1_complete=0.6,
        eval__truncated_share=0.5,
    )
    headings = [str(column.header) for column in rounds_table([cut], {}).columns]
    place = headings.index("complete")
    assert headings[place + 1] == "cut off"
    whole = rounds_table([result(1, eval__pass_at_1=0.3, eval__truncated_share=0.0)], {})
    assert "cut off" not in [str(column.header) for column in whole.columns]


def test_the_report_draws_a_bar_of_one_error_for_each_round(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "q-1", rounds=2)
    page, _ = write_report(folder)
    before = page.read_text(encoding="utf-8")
    assert 'class="bar"' not in before, "older runs have no errors"
    text = folder.journal.read_text(encoding="utf-8")
    text = text.replace('"eval/pass@1":', '"eval/pass@1_se":0.05,"eval/pass@1":')
    lines = [re.sub(r',"seal":"[0-9a-f]*"}$', "}", line) for line in text.splitlines()]
    folder.journal.write_text(
        "\n".join([*lines, ""]), encoding="utf-8"
    )  # an older Pawl had no seals
    page, markdown = write_report(folder)
    assert page.read_text(encoding="utf-8").count('class="bar"') == 3
    assert "± 0.05" in markdown.read_text(encoding="utf-8")
