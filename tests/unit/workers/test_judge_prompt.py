"""Prompts are checked when the config is read, and data in them stays data."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from policies.base.records import Message, Prompt, StopReason, Trajectory, Turn
from workers.judge.judge import JUDGES, Judge
from workers.judge.prompt import PromptTemplate, fenced, prompt_text, viewed_text


def pairwise(**settings: object) -> Judge.Config:
    config = JUDGES.parse({"type": "pairwise", "backend": "fake", **settings})
    assert isinstance(config, Judge.Config)
    return config


def test_values_are_filled_in_one_pass_so_that_placeholders_in_data_stay() -> None:
    template = PromptTemplate(name="t", text='{first} and {second}, {"json": {}}')
    filled = template.fill({"first": "{second}{0}{", "second": "}%s{first}"})
    assert filled == '{second}{0}{ and }%s{first}, {"json": {}}'


@pytest.mark.parametrize("text", ["plain", "", "}>>>", "<<<abc\nx\nabc>>>", "a\nb", "\ud800"])
def test_a_fence_has_a_mark_that_the_text_does_not_contain(text: str) -> None:
    found = re.fullmatch(r"<<<([0-9a-f]+)\n(.*)\n\1>>>", fenced(text), re.DOTALL)
    assert found is not None
    assert found.group(2) == text
    assert found.group(1) not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{prompt} {first} Winner:", r"lacks placeholders \(got \['second'\]\)"),
        (
            "{prompt} {first} {second} {anwser} Winner:",
            r"unknown placeholders.*did you mean \{answer\}",
        ),
        ("{prompt} {first} {second} {Criteria} Winner:", "unknown placeholders"),
        ("{prompt} {first} {second} who is best?", "never asks for the line"),
    ],
)
def test_a_wrong_prompt_file_is_refused_when_the_config_is_read(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        pairwise(prompt_file=str(path))
    assert "Set by: prompt_file of judge 'pairwise'. Fix:" in str(refused.value)


def test_a_prompt_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "weights.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.txt", tmp_path, binary):
        with pytest.raises(ValueError, match="the judge prompt cannot be read"):
            pairwise(prompt_file=str(path))


def test_criteria_that_the_prompt_would_ignore_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{prompt} {first} {second} Winner:")
    assert pairwise(prompt_file=str(path)).name is None
    with pytest.raises(ValueError, match=r"has no \{criteria\}"):
        pairwise(prompt_file=str(path), criteria="Be brief.")


def test_the_prompt_travels_with_the_pickled_config_and_its_version_names_the_text(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{prompt} {first} {second} Winner:")
    config = pairwise(prompt_file=str(path))
    travelled = pickle.dumps(config)
    path.unlink()
    template = pickle.loads(travelled).template
    assert template.text == "{prompt} {first} {second} Winner:"
    assert re.fullmatch(r"mine\.txt@[0-9a-f]{12}", template.version)


def test_a_judge_sees_the_last_completion_or_the_labelled_transcript() -> None:
    trajectory = Trajectory(
        id="t",
        prompt_id="p",
        sample_index=0,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=(1,),
        turns=(
            Turn(
                role="policy",
                token_ids=(2,),
                text="ask",
                logprobs=(-1.0,),
                stop_reason=StopReason.STOP,
            ),
            Turn(role="observation", token_ids=(3,), text="4", stop_reason=StopReason.OBSERVATION),
            Turn(
                role="policy",
                token_ids=(5,),
                text="it is 4",
                logprobs=(-1.0,),
                stop_reason=StopReason.STOP,
            ),
        ),
        status="complete",  # type: ignore[arg-type]
        sampling={},  # type: ignore[arg-type]
    )
    assert viewed_text(trajectory, "completion") == "it is 4"
    assert (
        viewed_text(trajectory, "transcript")
        == "[policy]\nask\n[observation]\n4\n[policy]\nit is 4"
    )
    begun = trajectory.model_copy(update={"opening": (Message(role="user", content="Play."),)})
    assert viewed_text(begun, "transcript").startswith("[opening]\nPlay.\n[policy]\nask\n")
    silent = trajectory.model_copy(update={"turns": (trajectory.turns[1],)})
    assert viewed_text(silent, "transcript") == ""


def test_a_task_of_several_messages_shows_who_said_what() -> None:
    one = (Message(role="user", content="Hi"),)
    two = (Message(role="system", content="Be kind."), *one)
    assert prompt_text(Prompt(id="p", messages=one)) == "Hi"
    assert prompt_text(Prompt(id="p", messages=two)) == "[system]\nBe kind.\n[user]\nHi"
