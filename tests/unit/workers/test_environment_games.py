"""The shipped games: who wins, what is answered, and what may start."""

from __future__ import annotations

from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import InputError
from policies.base.records import Json, Message, Prompt
from workers.rollout.environment import ENVIRONMENTS, Environment
from workers.rollout.environments.nim import read_move, winning_move


def game(settings: dict[str, Any], metadata: dict[str, Json], seed: int = 0) -> Environment:
    built: Environment = create(ENVIRONMENTS.parse(settings))
    message = Message(role="user", content="Play.")
    built.reset(Prompt(id="p", messages=(message,), metadata=metadata), seed)
    return built


def nim(stones: int, take: int = 3, **settings: Any) -> Environment:
    return game({"type": "nim", **settings}, {"stones": stones, "take": take})


def text_of(environment: Environment, action: str) -> str:
    observation = environment.step(action)
    assert not observation.done
    return observation.messages[0].content


def left_after(text: str) -> int:
    return int(text.split(". ")[1].split()[0])


def test_whoever_takes_the_last_stone_wins() -> None:
    won = nim(3)
    assert won.step("I take 3.").done
    assert won.outcome() == 1.0
    lost = nim(4, opponent="perfect")
    assert lost.step("1").done
    assert lost.outcome() == 0.0


def test_the_perfect_opponent_wins_every_game_that_it_can() -> None:
    for stones in range(4, 30):
        environment = nim(stones, opponent="perfect")
        observation = environment.step("1")
        while not observation.done:
            observation = environment.step("1")
        # The policy's only hope was to leave a multiple of 4, which taking one does from 4n + 1 alone.
        assert environment.outcome() == 0.0 or stones % 4 == 1


def test_optimal_play_beats_the_perfect_opponent() -> None:
    for stones in (5, 6, 7, 9, 22, 31):
        environment = nim(stones, opponent="perfect")
        observation = environment.step(str(winning_move(stones, 3)))
        while not observation.done:
            left = left_after(observation.messages[0].content)
            observation = environment.step(str(winning_move(left, 3)))
        assert environment.outcome() == 1.0


def test_the_greedy_opponent_takes_all_it_may() -> None:
    assert text_of(nim(20, opponent="greedy"), "2").startswith("I take 3. 15 stones left.")


def test_blunders_make_the_perfect_opponent_random() -> None:
    moves = set()
    for seed in range(30):
        environment = game(
            {"type": "nim", "opponent": "perfect", "blunders": 1.0}, {"stones": 20}, seed
        )
        moves.add(text_of(environment, "2").split(". ")[0])
    assert moves == {"I take 1", "I take 2", "I take 3"}


@pytest.mark.parametrize("action", ["4", "0", "no idea", "", "I take 40 stones"])
def test_the_first_illegal_move_is_told_and_the_second_loses(action: str) -> None:
    environment = nim(10)
    assert text_of(environment, action).startswith("That is not allowed. 10 stones left.")
    assert environment.step(action).done
    assert environment.outcome() == 0.0


def test_an_illegal_move_loses_at_once_when_so_set() -> None:
    environment = nim(10, illegal="loses")
    assert environment.step("4").done
    assert environment.outcome() == 0.0


def test_more_than_is_left_is_illegal() -> None:
    environment = nim(2)
    assert "from 1 to 2" in text_of(environment, "3")


def test_metadata_names_the_item_and_settings_the_question() -> None:
    environment = game(
        {"type": "nim", "opponent": "greedy", "ask": "Your move, 1 to {most}."},
        {"stones": 7, "take": 3, "item": "coins"},
    )
    assert text_of(environment, "1") == "I take 3. 3 coins left. Your move, 1 to 3."


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("I take 2 stones.", 2),
        ("Two, please", 2),
        ("someone takes none", None),
        ("", None),
        ("12", 12),
    ],
)
def test_a_move_is_the_first_number(text: str, move: int | None) -> None:
    assert read_move(text) == move


def test_there_is_no_winning_move_from_a_multiple() -> None:
    assert [winning_move(n, 3) for n in range(1, 9)] == [1, 2, 3, None, 1, 2, 3, None]


def guess(**metadata: Json) -> Environment:
    return game({"type": "guess_number", "guesses": 4}, metadata)


def test_guesses_are_answered_by_direction_until_the_hit() -> None:
    environment = guess(secret=13)
    assert text_of(environment, "Is it 10?") == "10 is wrong. The number is higher. Guess again."
    assert "lower" in text_of(environment, "15")
    assert environment.step("I say 13").done
    assert environment.outcome() == 1.0


def test_the_last_guess_ends_the_game() -> None:
    environment = guess(secret=13)
    for _ in range(3):
        assert not environment.step("1").done
    assert environment.step("2").done
    assert environment.outcome() == 0.0


def test_a_turn_without_a_number_uses_up_a_guess() -> None:
    environment = guess(secret=13)
    assert text_of(environment, "hm") == "I see no number. Guess a number."
    for _ in range(2):
        environment.step("hm")
    assert environment.step("hm").done


def test_speed_scores_early_hits_higher() -> None:
    scores = []
    for misses in range(4):
        environment = game({"type": "guess_number", "guesses": 4, "score": "speed"}, {"secret": 13})
        for _ in range(misses):
            environment.step("1")
        environment.step("13")
        scores.append(environment.outcome())
    assert scores == [1.0, 0.75, 0.5, 0.25]


def test_a_secret_that_the_prompt_does_not_name_differs_by_seed_and_stays_in_range() -> None:
    def secret(seed: int) -> int:
        for number in range(3, 8):
            environment = game({"type": "guess_number"}, {"low": 3, "high": 7}, seed)
            environment.step(str(number))
            if environment.outcome() == 1.0:
                return number
        raise AssertionError("no number of the range was the secret")

    assert {secret(seed) for seed in range(60)} == {3, 4, 5, 6, 7}


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("nim", {"stones": "many"}),
        ("nim", {"stones": 0}),
        ("nim", {"take": True}),
        ("nim", {"item": 3}),
        ("guess_number", {"secret": 1000}),
        ("guess_number", {"low": 9, "high": 2}),
        ("guess_number", {"guesses": 0}),
    ],
)
def test_a_prompt_that_starts_no_game_is_named(name: str, metadata: dict[str, Json]) -> None:
    with pytest.raises(InputError, match=r"metadata of prompt 'p'.*Fix:"):
        game({"type": name}, metadata)
