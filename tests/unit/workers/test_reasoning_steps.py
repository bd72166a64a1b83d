"""Steps of a turn: lines and sentences as spans of the sampled tokens, whatever the tokenizer makes of the text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base.records import (
    Sampling,
    Span,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.chat.reasoning_steps import StepKind, decoded_pieces, steps_of, with_steps
from workers.rollout.engines.fake import TERMINATOR, FakeChat

Kind = Literal["line", "sentence"]


class Bytes(FakeChat):
    """The fake engine's format: ids are bytes, so every character of more than one is split. Counts its work."""

    def __init__(self) -> None:
        self.num_decoded = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.num_decoded += len(token_ids)
        return super().decode(token_ids)


class Pieces(Bytes):
    """Token ids are numbers of given pieces, which may lie across any boundary."""

    def __init__(self, pieces: Sequence[str]) -> None:
        super().__init__()
        self.pieces = pieces

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.pieces[i] for i in token_ids if i < len(self.pieces))


class Spaced(Pieces):
    """As SentencePiece does it: the space that opens a text is dropped."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return super().decode(token_ids).removeprefix(" ")


@cache
def byte_level_bpe() -> ChatFormat:
    """A real byte-level BPE tokenizer with merges inside and across characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["It is 56.\nThe answer is 漢字。 So é! Yes?\n\n"] * 8, trainer)

    class Format(Bytes):
        def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text).ids)

        def decode(self, token_ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

    return Format()


def texts(text: str, kind: Kind, chat: ChatFormat | None = None) -> list[str]:
    chat = chat or Bytes()
    return [step.text for step in steps_of((*chat.encode(text), TERMINATOR), chat, kind)]


TEXTS = st.text(alphabet=st.sampled_from(list("ab1 .!?\n\t\"')é漢。😀e.g")), max_size=60)
KINDS: st.SearchStrategy[Kind] = st.sampled_from(["line", "sentence"])


def test_lines_end_with_their_line_breaks_and_indentation_belongs_to_the_next() -> None:
    assert texts("one\ntwo\n\n    three\n", "line") == ["one\n", "two\n\n", "    three\n"]


def test_white_space_and_terminators_are_no_steps_of_their_own() -> None:
    assert texts("\n\n one\n\n", "line") == ["\n\n one\n\n"]
    assert texts("", "line") == [""]
    assert steps_of((), Bytes(), "line")[0].text == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 56. Then 5.", ["It is 56. ", "Then 5."]),
        ("Is it 3.14? Yes! Done", ["Is it 3.14? ", "Yes! ", "Done"]),
        ('He said "no." Then left.', ['He said "no." ', "Then left."]),
        ("See e.g. Dr. Who. End", ["See e.g. Dr. Who. ", "End"]),
        ("1. First\n2. Second. Third", ["1. First\n", "2. Second. ", "Third"]),
        ("漢字。次。", ["漢字。", "次。"]),
        ("wait... what", ["wait... ", "what"]),
        ("a heading\ntext", ["a heading\n", "text"]),
    ],
)
def test_sentences_end_where_people_say_they_do(text: str, expected: list[str]) -> None:
    assert texts(text, "sentence") == expected


@given(TEXTS, KINDS, st.booleans())
@settings(deadline=None, max_examples=300)
def test_steps_cover_the_turn_in_order_and_their_texts_are_its_text(
    text: str, kind: Kind, is_bpe: bool
) -> None:
    chat = byte_level_bpe() if is_bpe else Bytes()
    ids = chat.encode(text)
    steps = steps_of(ids, chat, kind)
    assert (steps[0].start, steps[-1].end) == (0, len(ids))
    assert all(one.end == two.start for one, two in itertools.pairwise(steps))
    assert "".join(step.text for step in steps) == text
    assert all(chat.decode(ids[s.start : s.end]) == s.text for s in steps)
    assert len(steps) == 1 or all(step.text.strip() for step in steps)


@given(st.lists(st.integers(0, TERMINATOR), max_size=40), KINDS)
@settings(deadline=None, max_examples=300)
def test_bytes_that_are_no_text_are_covered_too(ids: list[int], kind: Kind) -> None:
    steps = steps_of(ids, Bytes(), kind)
    assert (steps[0].start, steps[-1].end) == (0, len(ids))
    assert all(one.end == two.start for one, two in itertools.pairwise(steps))


@given(TEXTS)
@settings(deadline=None)
def test_lines_are_those_of_the_text_when_every_character_is_a_token(text: str) -> None:
    chat = Pieces(list(text))
    steps = steps_of(range(len(text)), chat, "line")
    assert [s.text.strip() for s in steps if s.text.strip()] == [
        line.strip() for line in text.split("\n") if line.strip()
    ]


def test_a_character_is_never_cut_and_its_bytes_stay_together() -> None:
    ids = "é\n漢".encode()
    assert list(decoded_pieces(ids, Bytes())) == [(2, "é"), (3, "\n"), (6, "漢")]
    assert [(s.start, s.end) for s in steps_of(ids, Bytes(), "line")] == [(0, 3), (3, 6)]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["one", "\ntwo", "\nthree"], [(0, 1), (1, 2), (2, 3)]),  # the break opens a token
        (["one.", "\n\n", "two"], [(0, 2), (2, 3)]),
        (["on", "e\ntw", "o", "\n", "x"], [(0, 2), (2, 4), (4, 5)]),  # words on both sides: it ends
        (["a\nb\nc", "\nd"], [(0, 1), (1, 2)]),
        (["a\nb"], [(0, 1)]),
    ],
)
def test_a_token_across_a_boundary_is_not_cut(
    pieces: list[str], expected: list[tuple[int, int]]
) -> None:
    steps = steps_of(range(len(pieces)), Pieces(pieces), "line")
    assert [(s.start, s.end) for s in steps] == expected


def test_the_space_that_a_tokenizer_drops_at_the_start_of_a_text_is_kept_inside() -> None:
    steps = steps_of(range(4), Spaced([" It", " is.", " So", " be"]), "sentence")
    assert [(s.text, s.start, s.end) for s in steps] == [("It is.", 0, 2), (" So be", 2, 4)]


def test_the_work_is_linear_in_the_length_of_the_turn() -> None:
    work = []
    for number in (500, 1000):
        chat = Bytes()
        steps_of([*("a. é\n" * number).encode(), *[0xFF] * number], chat, "sentence")
        work.append(chat.num_decoded)
    assert work[1] < 2.1 * work[0]


def trajectory_of(text: str) -> Trajectory:
    ids = (*text.encode(), TERMINATOR)
    said = Turn(
        role="policy",
        token_ids=ids,
        text=text,
        logprobs=(-1.0,) * len(ids),
        stop_reason=StopReason.STOP,
    )
    seen = Turn(role="observation", token_ids=(1,), text="a\nb", stop_reason=StopReason.OBSERVATION)
    silent = said.model_copy(update={"token_ids": (), "logprobs": (), "text": ""})
    return Trajectory(
        id="t",
        prompt_id="p",
        sample_index=0,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=(9,),
        turns=(said, seen, silent),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )


def test_only_what_the_policy_wrote_is_split_and_a_step_can_be_graded() -> None:
    split = with_steps(trajectory_of("x = 1\ny = 2"), Bytes(), "line")
    assert [len(turn.steps) for turn in split.turns] == [2, 0, 0]
    assert split.step_spans[:2] == (
        Span(turn=0, start=0, end=6),
        Span(turn=0, start=6, end=12),
    )
    graded = split.model_copy(update={"graded": split.step_spans[1]})
    assert graded.completion == "y = 2"
    assert split.token_ids == trajectory_of("x = 1\ny = 2").token_ids


@pytest.mark.parametrize("kind", ["turn"])
def test_whole_turns_leave_the_trajectory_as_it_is(kind: StepKind) -> None:
    trajectory = trajectory_of("x\ny")
    assert with_steps(trajectory, Bytes(), kind) is trajectory
