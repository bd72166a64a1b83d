"""Decides how a user's function is called: which parameter gets what, decided by names before anything is sampled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from policies.base.errors import ConfigurationError, VerificationError, explain
from workers.verify.parameter_names import (
    ALWAYS,
    MANY,
    MARKS_MANY,
    MARKS_VERL,
    MARKS_VERL_BATCH,
    MEANINGS,
    NOT_HERE,
    ONE,
    OWN,
    USUAL_ANSWERS,
)

Style = Literal["pawl", "trl", "verl", "verl_batch", "openrlhf"]

WANTED = (
    "f(prompt, completion, answer[, metadata]), TRL's f(prompts, completions, **columns) or verl's "
    "f(data_source, solution_str, ground_truth, extra_info)"
)
BY_POSITION: dict[int, tuple[str, ...]] = {
    1: ("completion",),
    3: ("prompt", "completion", "answer"),
    4: ("prompt", "completion", "answer", "metadata"),
}
"""Where no parameter has a known name, their number tells what they are."""
COLUMN = "metadata."
"""Before the path of a column in the metadata: `metadata.extra_info.index`."""

_SHOWS_ATTEMPT = frozenset(
    {"completion", "completion_ids", "completion_messages", "query", "state"}
)
_KEYWORDS: dict[Style, tuple[str, ...]] = {
    "pawl": ("prompt", "completion", *USUAL_ANSWERS, "metadata", "info", "task", "completion_ids"),
    "trl": ("prompts", "completions", "completion_ids", *USUAL_ANSWERS, "log_extra", "log_metric"),
    "verl": ("data_source", "solution_str", "ground_truth", "extra_info"),
    "verl_batch": ("data_sources", "solution_strs", "ground_truths", "extra_infos"),
    "openrlhf": ("queries", "prompts", "labels"),
}
"""What `**kwargs` holds; in Pawl's and TRL's style all columns of the metadata besides."""


@dataclass(frozen=True)
class Fit:
    """The source of each parameter. Example: `Fit("one", (), {"completion": "completion", "gold": "answer"}, ...)`."""

    calls: Literal["one", "many"]
    """One call for an attempt, or one for all attempts at a prompt."""
    positional: tuple[str, ...]
    """Parameters that can only be given by position, in order."""
    sources: Mapping[str, str]
    """By parameter: one of `MEANINGS`, or `metadata.` and the path of a column."""
    keywords: Mapping[str, str]
    """The same for what `**kwargs` holds."""
    defaults: tuple[str, ...]
    """Parameters that keep their default."""
    by_order: bool
    """No name was known: the order of the parameters decided."""

    def described(self) -> str:
        """The assignment in a line, for people."""
        said = [f"{name} <- {_said(source)}" for name, source in self.sources.items()]
        said += [f"{name} <- its default" for name in self.defaults]
        if self.keywords:
            said.append(f"**kwargs <- {', '.join(self.keywords)}")
        how = (
            "one call for all attempts at a prompt"
            if self.calls == "many"
            else "one attempt a call"
        )
        order = "; by POSITION, because no name is known" if self.by_order else ""
        return f"{', '.join(said)}; {how}{order}"


def _said(source: str) -> str:
    return f"column {source.removeprefix(COLUMN)}" if source.startswith(COLUMN) else source


class FunctionSignature:
    """The parameters of a function, and the style in which it is called."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        style: Style | Literal["auto"],
        arguments: Mapping[str, str],
        answer_column: str = "answer",
        where: str,
    ) -> None:
        """Read the signature.

        Args:
            function: what is called.
            style: how; `auto` tells by the names.
            arguments: what the user says that parameters get, by parameter.
            answer_column: one more name for the answer.
            where: the setting that names the function, for messages.

        Raises:
            ConfigurationError: it has no signature, or none that tells how to call it.
        """
        self._where = where
        self._name = getattr(function, "__name__", "the_function")
        try:
            parameters = dict(inspect.signature(function).parameters)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                explain(
                    f"the parameters of this function cannot be read ({error})",
                    value=getattr(function, "__name__", repr(function)[:80]),
                    where=where,
                    fix="wrap it: `def score(prompt, completion, answer): return THE_FUNCTION(...)`",
                )
            ) from error
        bound = set(function.keywords) if isinstance(function, partial) else set()
        self._kinds = {n: p for n, p in parameters.items() if n not in bound}
        self._arguments = dict(arguments)
        self._answer_column = answer_column
        self._factory_hint = _factory_hint(function, parameters)
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._named = [
            n for n, p in self._kinds.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        self.required = [
            n for n in self._named if self._kinds[n].default is inspect.Parameter.empty
        ]
        self.style: Style = self._style() if style == "auto" else style
        unknown = [n for n in arguments if n not in self._named]
        if unknown and not self.takes_all:
            raise ConfigurationError(
                explain(
                    f"the function has no parameter {', '.join(unknown)}",
                    value=dict(arguments),
                    where=f"verifiers[...].arguments of {where}",
                    fix=f"name some of its parameters: {', '.join(self._named)}",
                )
            )

    @property
    def calls(self) -> Literal["one", "many"]:
        return "many" if self.style in ("trl", "verl_batch", "openrlhf") else "one"

    def _style(self) -> Style:
        names = set(self._named) - set(self._arguments)
        marked = set(self._arguments.values()) & {"completion", "completion_messages", "query"}
        one = bool(marked) or any(ONE.get(n) == "completion" for n in names)
        many = any(MANY.get(n) in ("completion", "prompt", "query") and n not in ONE for n in names)
        if names & MARKS_MANY or (not one and (many or "completion_ids" in names)):
            if "queries" in names:
                return "openrlhf"
            return (
                "verl_batch" if names & MARKS_VERL_BATCH and "completions" not in names else "trl"
            )
        if names & MARKS_VERL and not names & {"prompt", "completion"}:
            return "verl"
        if not self._named and any(
            p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in self._kinds.values()
        ):
            raise ConfigurationError(
                explain(
                    "a function of *args and **kwargs alone does not tell how it is called",
                    value="(*args, **kwargs)",
                    where=self._where,
                    fix="say it: `signature: trl` (or verl, pawl); a decorator keeps the names with functools.wraps",
                )
            )
        return "pawl"

    def fit(self, columns: Mapping[str, Any]) -> Fit:
        """Return what each parameter gets from a prompt with these metadata.

        Raises:
            VerificationError: nothing fills a parameter that has no default, or nothing shows the attempt.
        """
        sources: dict[str, str] = {}
        defaults: list[str] = []
        missing: list[str] = []
        for name in self._named:
            source = self._source(name, columns)
            if source is not None:
                sources[name] = source
            elif name in self.required:
                missing.append(name)
            else:
                defaults.append(name)
        by_order = False
        if missing and missing == self.required and not sources and self.style == "pawl":
            order = BY_POSITION.get(len(missing))
            if order is not None:
                sources, missing, by_order = dict(zip(self.required, order, strict=True)), [], True
        if missing:
            raise self._refused_missing(missing, sources, columns)
        keywords = self._keywords(columns, sources) if self.takes_all else {}
        if not _SHOWS_ATTEMPT & {*sources.values(), *keywords.values()}:
            raise self._refused_blind(sources)
        positional = tuple(
            n for n in sources if self._kinds[n].kind is inspect.Parameter.POSITIONAL_ONLY
        )
        return Fit(self.calls, positional, sources, keywords, tuple(defaults), by_order)

    def _source(self, name: str, columns: Mapping[str, Any]) -> str | None:
        if name in self._arguments:
            return self._given(name, columns)
        known = (MANY if self.calls == "many" else ONE).get(name)
        if name == self._answer_column:
            known = "answer"
        default = self._kinds[name].default
        if name in columns and name not in OWN and not self._needed_elsewhere(name, known):
            if self.style != "verl" or name in self.required or known is not None:
                return COLUMN + name
            return None
        if known == "data_source" and name not in self.required and "data_source" not in columns:
            return None
        if known is None or name in self.required or name in ALWAYS or default is None:
            return known
        return None

    def _needed_elsewhere(self, name: str, known: str | None) -> bool:
        """Tell whether `name` must be what the table says: the answer itself, or the only sight of the attempt."""
        if name == "answer" and known == "answer":
            return True
        table = MANY if self.calls == "many" else ONE
        others = {table.get(n) for n in self._named if n != name}
        return known == "completion" and "completion" not in others

    def _given(self, name: str, columns: Mapping[str, Any]) -> str:
        wanted = self._arguments[name]
        if wanted in MEANINGS:
            return wanted
        path = wanted.removeprefix(COLUMN)
        if path not in columns and not _reaches(columns, path.split(".")):
            raise VerificationError(
                explain(
                    f"the prompt has no column {path!r} for the parameter {name!r}",
                    value=wanted,
                    where=f"verifiers[...].arguments of {self._where}",
                    fix=f"name one of its metadata ({_listed(columns)}), or one of {', '.join(MEANINGS)}",
                )
            )
        return COLUMN + path

    def _keywords(self, columns: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, str]:
        known = MANY if self.calls == "many" else ONE
        found: dict[str, str] = {}
        if self.style in ("pawl", "trl"):
            found = {n: COLUMN + n for n in columns if n not in OWN and n != "answer"}
            if self._answer_column not in found:
                found[self._answer_column] = "answer"
        for name in _KEYWORDS[self.style]:
            found.setdefault(name, known[name])
        found |= {n: self._given(n, columns) for n in self._arguments}
        taken = set(sources) | (set(self._named) - set(self.required))
        return {n: source for n, source in found.items() if n not in taken}

    def _refused_missing(
        self, missing: list[str], sources: Mapping[str, str], columns: Mapping[str, Any]
    ) -> VerificationError:
        absent = [f"{n}: {NOT_HERE[n]}" for n in missing if n in NOT_HERE]
        if absent:
            fix = (
                "give the parameter a default and do without it, or, where None will do, add this line to the file and "
                f"name `score`: `{self._wrapper(missing)}`"
            )
            what = f"Pawl has not what the function asks for ({'; '.join(absent)})"
        elif self._factory_hint:
            what, fix = "this makes a function and is none itself", self._factory_hint
        else:
            what = "the function's parameters cannot be filled in: nothing is known by these names"
            fix = (
                f"say what they get, e.g. `arguments: {self._guess(missing, sources, columns)}` (a column of the "
                f"metadata: {_listed(columns)}; or one of {', '.join(MEANINGS)}), give them defaults, or write "
                f"the function as {WANTED}"
            )
        return VerificationError(explain(what, value=missing, where=self._where, fix=fix))

    def _refused_blind(self, sources: Mapping[str, str]) -> VerificationError:
        what = "no parameter of the function gets the attempt, so it could not judge it"
        golds = [n for n, source in sources.items() if source == "answer"]
        name = next(iter(golds or self._named), "completion")
        fix = self._factory_hint or (
            f"say which one is the attempt, e.g. `arguments: {{{name}: completion}}`, or write it as {WANTED}"
        )
        shown = ", ".join(f"{n} <- {_said(s)}" for n, s in sources.items()) or "no parameters"
        return VerificationError(explain(what, value=shown, where=self._where, fix=fix))

    def _wrapper(self, missing: Sequence[str]) -> str:
        """A function around this one that gives None for what is missing, as a line of Python."""
        names = [n for n in self.required if n not in missing]
        rest = ["**columns"] if self.takes_all else []
        given = [f"{n}={n}" for n in names] + [f"{n}=None" for n in missing] + rest
        return f"def score({', '.join(names + rest)}): return {self._name}({', '.join(given)})"

    def _guess(
        self, missing: Iterable[str], sources: Mapping[str, str], columns: Mapping[str, Any]
    ) -> str:
        """A setting that fills all parameters: what is not used yet, in the order of importance."""
        used = set(sources.values())
        free = [m for m in ("completion", "answer") if m not in used]
        free += [n for n in columns if COLUMN + n not in used] + ["prompt", "metadata"]
        return "{" + ", ".join(f"{n}: {w}" for n, w in zip(missing, free, strict=False)) + "}"


def _reaches(value: Any, path: list[str]) -> bool:
    for step in path:
        if not isinstance(value, Mapping) or step not in value:
            return False
        value = value[step]
    return True


def _listed(columns: Mapping[str, Any]) -> str:
    return ", ".join(list(columns)[:12]) or "it has none"


def _factory_hint(function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> str:
    """Tell how to use what looks like a factory, by its name or by what it says that it returns; else empty."""
    name = getattr(function, "__name__", "")
    returns = str(getattr(function, "__annotations__", {}).get("return", ""))
    if not (name.startswith(("get_", "make_", "build_", "create_")) or "Callable" in returns):
        return ""
    wanted = ", ".join(f"{n}: ..." for n, p in parameters.items() if p.default is p.empty)
    return f"let it make the function: `factory_arguments: {{{wanted}}}`"
