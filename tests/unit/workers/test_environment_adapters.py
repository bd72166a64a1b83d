"""Environments of others: states become text, turns become actions, rewards become outcomes; bad ones are refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import ConfigurationError, InputError, RolloutError
from policies.base.records import Json, Message, Prompt
from workers.rollout.environment import ENVIRONMENTS, Environment

HERE = "tests.unit.workers.test_environment_adapters"


class Dial:
    """A world with the Gymnasium interface: actions 0 to 2 are added up; rewards are what its maker says."""

    def __init__(self, rewards: tuple[float, ...] = (0.25, 0.25, 0.5), **options: Any) -> None:
        self.rewards = list(rewards)
        self.options = options
        self.action_space = self
        self.is_closed = False
        LAST.append(self)

    def contains(self, action: object) -> bool:
        return action in (0, 1, 2) or isinstance(action, str)

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self.seed = seed
        self.actions: list[object] = []
        return f"seed {seed}", {}

    def step(self, action: object) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        number = len(self.actions)
        return f"did {action}", self.rewards[number - 1], number == len(self.rewards), False, {}

    def render(self) -> str:
        return "\n\x1b[41mS\x1b[0mFF\n\x1b[1mG\n"

    def close(self) -> None:
        self.is_closed = True


class Cut(Dial):
    """Ends by truncation."""

    def step(self, action: object) -> tuple[str, float, bool, bool, dict[str, Any]]:
        state, reward, done, _, info = super().step(action)
        return state, reward, False, done, info


def fails() -> None:
    raise OSError("no display")


LAST: list[Dial] = []


def dial(
    metadata: dict[str, Json] | None = None, name: str = "Dial", **settings: Any
) -> Environment:
    built: Environment = create(
        ENVIRONMENTS.parse({"type": "gymnasium", "function": f"{HERE}:{name}", **settings})
    )
    built.reset(prompt(metadata), seed=1)
    return built


def prompt(metadata: dict[str, Json] | None = None, answer: Json = None) -> Prompt:
    message = Message(role="user", content="Play.")
    return Prompt(id="p", messages=(message,), metadata=metadata or {}, answer=answer)


def world() -> Dial:
    return LAST[-1]


def test_the_sum_of_rewards_is_scaled_to_an_outcome() -> None:
    environment = dial(low_return=-1.0, high_return=1.0, unfinished="return")
    assert environment.outcome() == 0.5
    environment.step("1")
    assert environment.outcome() == 0.625
    assert not environment.step("1").done
    assert environment.step("1").done
    assert environment.outcome() == 1.0


def test_a_return_outside_the_scale_is_cut() -> None:
    environment = dial(high_return=0.1, unfinished="return")
    environment.step("1")
    assert environment.outcome() == 1.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_episode_that_the_world_has_not_ended_scores_lowest_whatever_the_sign_of_rewards(
    sign: float,
) -> None:
    rewards = [sign, sign, sign]
    environment = dial(arguments={"rewards": rewards}, low_return=-4.0, high_return=4.0)
    assert environment.outcome() == 0.0
    environment.step("1")
    assert environment.outcome() == 0.0
    environment.step("1")
    environment.step("1")
    assert environment.outcome() == pytest.approx((4.0 + 3 * sign) / 8.0)


def test_a_turn_without_an_action_costs() -> None:
    scores = []
    for unreadable in range(4):
        environment = dial(unreadable_cost=0.4)
        for _ in range(unreadable):
            environment.step("hm")
        for _ in range(3):
            environment.step("1")
        scores.append(environment.outcome())
    assert scores == pytest.approx([1.0, 0.6, 0.2, 0.0])


def cliff(turns: list[str], **settings: Any) -> float:
    tree = {"type": "gymnasium", "id": "CliffWalking-v1", "low_return": -100, "high_return": 0}
    labels = ["up", "right", "down", "left"]
    environment: Environment = create(ENVIRONMENTS.parse({**tree, "actions": labels, **settings}))
    environment.prepare()
    environment.reset(prompt(), 1)
    for turn in turns:
        environment.step(turn)
    score = environment.outcome()
    environment.close()
    assert isinstance(score, float)
    return score


def test_walking_to_the_goal_beats_falling_and_saying_nothing_where_all_rewards_are_negative() -> (
    None
):
    goal = ["up", *["right"] * 11, "down"]
    best = cliff(goal)
    assert best == pytest.approx(0.87)
    assert cliff(["hm"] * 6) == 0.0
    assert cliff(["up"] * 6) == 0.0
    assert 0.0 < cliff(["up", "left", *goal[1:]]) < best
    assert 0.0 < cliff(["hm", *goal]) < best
    assert cliff(["right", *goal]) == 0.0


@pytest.mark.parametrize(
    ("world", "actions", "said"),
    [
        ("Pendulum-v1", "integer", "its actions are no whole numbers"),
        ("Pendulum-v1", ["push", "pull"], "its actions are no whole numbers"),
        ("Pendulum-v1", "text", "its actions are no texts"),
        ("CliffWalking-v1", "text", "its actions are no texts"),
        ("CliffWalking-v1", ["a", "b", "c", "d", "e"], "there is none for the label 'e'"),
        ("CliffWalking-v1", ["up", "right"], "2 labels name 4 actions"),
    ],
)
def test_a_world_whose_actions_cannot_be_said_is_refused(
    world: str, actions: object, said: str
) -> None:
    environment: Environment = create(
        ENVIRONMENTS.parse({"type": "gymnasium", "id": world, "actions": actions})
    )
    with pytest.raises(ConfigurationError, match=rf"{said}.*Set by: .*actions\. Fix: "):
        environment.prepare()


@pytest.mark.parametrize(
    ("world", "score", "scale"),
    [
        ("CliffWalking-v1", 0, {"low_return": -5000, "high_return": -13}),
        ("CartPole-v1", 1, {"high_return": 500}),
    ],
)
def test_a_scale_on_which_all_random_episodes_score_the_same_is_warned_of(
    world: str, score: int, scale: dict[str, float]
) -> None:
    tree = {"type": "gymnasium", "id": world}
    (warning,) = create(ENVIRONMENTS.parse(tree)).prepare()
    assert f"all of them would score {score}" in warning
    assert "low_return and high_return. Fix: set low_return to the worst" in warning
    assert create(ENVIRONMENTS.parse({**tree, **scale})).prepare() == ()


class FromTwo(Dial):
    """Whole numbers from 2 to 3, as Gymnasium's Discrete(2, start=2)."""

    start, n = 2, 2

    def contains(self, action: object) -> bool:
        return action in (2, 3)


def test_labels_count_from_where_the_actions_of_the_world_begin() -> None:
    environment = dial(name="FromTwo", actions=["left", "right"])
    environment.prepare()
    environment.reset(prompt(), 1)
    environment.step("right")
    assert world().actions == [3]


def test_an_episode_may_end_by_truncation_too() -> None:
    environment = dial(name="Cut", arguments={"rewards": [1.0]})
    assert environment.step("0").done


@pytest.mark.parametrize(
    ("actions", "text", "done"),
    [
        ("integer", "First 1, no: 2.", 2),
        ("text", "Go north", "Go north"),
        (["left", "right"], "not LEFT but Right.", 1),
        (["up", "upper"], "the upper one", 1),
        (["a+b", "c"], "a+b", 0),
    ],
)
def test_a_turn_becomes_an_action(actions: object, text: str, done: object) -> None:
    environment = dial(actions=actions)
    environment.step(text)
    assert world().actions == [done]


@pytest.mark.parametrize(
    ("actions", "text"), [("integer", "none"), ("integer", "7"), (["left"], "leftover")]
)
def test_what_is_no_action_of_the_world_is_told_and_moves_nothing(
    actions: object, text: str
) -> None:
    environment = dial(actions=actions, unreadable="Say it again.")
    observation = environment.step(text)
    assert observation.messages[0].content == "Say it again."
    assert not observation.done
    assert world().actions == []


def test_a_rendered_state_is_text_without_colours_and_keeps_the_marked_place() -> None:
    environment = dial(show="render", text="{state}\nWhere?")
    assert environment.step("1").messages[0].content == "[S]FF\nG\nWhere?"
    assert world().options == {"render_mode": "ansi"}


def test_the_world_is_seeded_by_its_prompt() -> None:
    dial({"seed": 7})
    assert world().seed == 7
    dial()
    first = world().seed
    dial()
    assert world().seed == first
    with pytest.raises(InputError, match="metadata of prompt 'p'"):
        dial({"seed": "x"})


def test_the_start_may_be_left_to_the_prompt() -> None:
    settings = {"type": "gymnasium", "function": f"{HERE}:Dial"}
    shown: Environment = create(ENVIRONMENTS.parse(settings))
    assert shown.reset(prompt({"seed": 7}), 1)[0].content == "seed 7"
    hidden: Environment = create(ENVIRONMENTS.parse({**settings, "show_start": False}))
    assert hidden.reset(prompt({"seed": 7}), 1) == ()


def test_rewards_that_are_no_numbers_are_the_environments_fault() -> None:
    environment = dial(arguments={"rewards": ["nan", 0.0]})
    environment.step("1")
    with pytest.raises(RolloutError, match=r"finite number.*Fix:"):
        environment.outcome()


def test_the_world_is_closed_with_the_episode() -> None:
    environment = dial()
    environment.close()
    assert world().is_closed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": f"{HERE}:fails"}, "cannot be made: OSError: no display"),
        ({"function": f"{HERE}:absent"}, "has no 'absent'"),
        ({"function": f"{HERE}:Dial", "arguments": {"rewards": 3}}, "cannot be made: TypeError"),
    ],
)
def test_a_world_that_cannot_be_made_is_refused_before_the_run(
    settings: dict[str, Any], message: str
) -> None:
    environment: Environment = create(ENVIRONMENTS.parse({"type": "gymnasium", **settings}))
    with pytest.raises(ConfigurationError, match=message):
        environment.prepare()


def test_a_missing_gymnasium_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "gymnasium", None
    )  # Python's own way to say: cannot be imported
    environment: Environment = create(
        ENVIRONMENTS.parse({"type": "gymnasium", "id": "FrozenLake-v1"})
    )
    with pytest.raises(ConfigurationError, match=r"not installed.*Fix: pip install gymnasium"):
        environment.prepare()


def test_frozen_lake_is_won_by_its_known_path() -> None:
    settings = {
        "type": "gymnasium",
        "id": "FrozenLake-v1",
        "arguments": {"is_slippery": False},
        "show": "render",
        "actions": ["left", "down", "right", "up"],
    }
    environment: Environment = create(ENVIRONMENTS.parse(settings))
    environment.prepare()
    opening = environment.reset(prompt(), 0)
    assert opening[0].content == "[S]FFF\nFHFH\nFFFH\nHFFG"
    for action in ("down", "down", "right", "down", "right"):
        assert not environment.step(f"I go {action}.").done
    assert environment.step("right").done
    assert environment.outcome() == 1.0
    environment.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of id and function"),
        ({"id": "A-v0", "function": "a:b"}, "exactly one of id and function"),
        ({"id": "A-v0", "low_return": 1.0}, "must be below high_return"),
        ({"id": "A-v0", "actions": []}, "names no label"),
        ({"id": "A-v0", "text": "look"}, "must have {state} in it"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ENVIRONMENTS.parse({"type": "gymnasium", **settings})
