"""Names that parameters of users' functions have, and what each stands for: the one table by which they are called.

A parameter is filled by its name. What is not in this table is a column of the prompt's metadata under its own name, or
is named by the setting `arguments`.
"""

from __future__ import annotations

from typing import Final

MEANINGS: Final[dict[str, str]] = {
    "prompt": "the text of the last user message",
    "completion": "the text of the attempt: its last turn, or the step that is graded",
    "answer": "the prompt's answer, as it stands in the file",
    "metadata": "all metadata of the prompt",
    "extra_info": "the metadata's extra_info, else all metadata; with num_turns",
    "data_source": "the metadata's data_source, else an empty text",
    "info": "the metadata's info, else all metadata",
    "task": "the metadata's task, else `default`",
    "state": "a dict of prompt, completion, answer, task, info and turn",
    "completion_ids": "the token ids that the policy sampled",
    "query": "the texts of prompt and completion together",
    "prompt_messages": "the prompt as a list of chat messages",
    "completion_messages": "all turns of the attempt as a list of chat messages",
    "log_extra": "log_extra(column, values): kept beside the verdicts",
    "log_metric": "log_metric(name, value): a metric of the round",
}
"""What a parameter can get, and what that is."""

_PROMPT = "prompt question problem instruction input query user_prompt prompt_str prompt_text question_text input_text"
_COMPLETION = (
    "completion response solution_str output text model_output model_answer model_response generation generated "
    "generated_text prediction predicted pred predict_str predicted_answer candidate attempt student_answer "
    "response_str response_text completion_text completion_str output_text llm_output llm_response "
    "assistant_response hypothesis actual reply action"
)
_ANSWER = (
    "answer solution ground_truth label gold target reference ground_truth_answer groundtruth gold_answer "
    "golden_answer gold_solution gold_label reference_answer reference_solution correct_answer right_answer "
    "true_answer target_answer expected expected_answer expected_output expected_response truth gt gold_standard "
    "answer_key"
)
_SAME = (
    "extra_info data_source task state completion_ids prompt_messages completion_messages log_extra log_metric "
    "metadata info"
)

_NAMES: Final[dict[str, str]] = {
    **dict.fromkeys(_PROMPT.split(), "prompt"),
    **dict.fromkeys(_COMPLETION.split(), "completion"),
    **dict.fromkeys(_ANSWER.split(), "answer"),
    **{name: name for name in _SAME.split()},
    "meta": "metadata",
    "response_ids": "completion_ids",
    "token_ids": "completion_ids",  # nosec B105 # the name of a parameter
}
_ALIKE = ("completion_ids", "response_ids", "token_ids", "log_extra", "log_metric")

ONE: Final[dict[str, str]] = {
    **_NAMES,
    **{f"{name}s": "answer" for name, meaning in _NAMES.items() if meaning == "answer"},
}
"""Names in a function that gets one attempt at a time."""

MANY: Final[dict[str, str]] = {
    **{name: meaning for name, meaning in _NAMES.items() if meaning != "completion"},
    **{f"{name}s": meaning for name, meaning in _NAMES.items() if name not in _ALIKE},
    "queries": "query",
}
"""Names in a function that gets all attempts at a prompt in one call: each gets a list, one item an attempt."""

MARKS_MANY: Final[frozenset[str]] = frozenset({"completions", "solution_strs"})
"""A function with one of these gets all attempts at once, whatever its other names."""

MARKS_VERL: Final[frozenset[str]] = frozenset(
    {"solution_str", "predict_str", "model_output", "extra_info", "data_source"}
)
"""A function with one of these, and none of `MARKS_MANY`, is called as verl calls its own."""

MARKS_VERL_BATCH: Final[frozenset[str]] = frozenset(
    {"solution_strs", "data_sources", "ground_truths", "extra_infos"}
)
"""The same for verl's batches."""

_ALWAYS = (
    "prompt prompts completion completions completion_ids answer metadata solution_str solution_strs ground_truth "
    "ground_truths extra_info extra_infos data_source data_sources queries log_extra log_metric"
)
ALWAYS: Final[frozenset[str]] = frozenset(_ALWAYS.split())
"""Filled even where the parameter has a default; a synonym (`target=0.5`) is left alone unless its default is None."""

_OWN = (
    "prompt prompts completion completions completion_ids solution_str solution_strs ground_truth ground_truths "
    "extra_info extra_infos data_source data_sources metadata queries"
)
OWN: Final[frozenset[str]] = frozenset(_OWN.split())
"""Never a column of the metadata, although one may be called the same."""

USUAL_ANSWERS: Final[tuple[str, ...]] = ("answer", "solution", "ground_truth", "label")
"""Under these names `**kwargs` holds the answer, where the metadata has no column of that name."""

NOT_HERE: Final[dict[str, str]] = {
    "trainer_state": "attempts are judged by workers that have no trainer, so there is no trainer state",
    "environments": "attempts are judged after their episodes, so there are no environment objects",
    "parser": "there is no parser object",
}
"""What other systems hand to functions and Pawl has not, with the reason."""
