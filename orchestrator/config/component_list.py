"""The list that `pawl components` prints: families, their members, and the settings of each."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic_core import to_jsonable_python

from orchestrator.config.families import FAMILIES
from orchestrator.config.plug_ins.host import ask, hosting
from orchestrator.config.plug_ins.messages import Question
from policies.base.component import Component, Family
from policies.base.errors import ConfigurationError
from policies.base.plain_text import one_line
from policies.examples.builder import PreferenceBuilder
from policies.objectives.loss import Loss

_PLACES = {
    "prompt source": "prompts.train, prompts.held_out",
    "rollout engine": "rollout.engine",
    "rollout strategy": "rollout.strategy",
    "tool": "rollout.strategy.tools",
    "call format": "rollout.strategy.calls",
    "environment": "rollout.strategy.environment",
    "verifier": "verifiers",
    "judge": "judges",
    "judge backend": "judges.N.backend, roles.NAME.backend",
    "metric": "metrics",
    "combiner": "feedback.combine",
    "preference builder": "preferences",
    "loss": "training.loss",
    "reference": "training.reference",
    "training engine": "training.engine",
    "acceptance rule": "acceptance",
}


def list_components(wanted: str | None) -> list[dict[str, Any]]:
    """Families with their members; one family when `wanted` names it.

    Raises:
        ConfigurationError: there is no such family.
    """
    chosen = FAMILIES if wanted is None else (_family(wanted),)
    with hosting():
        return [
            {
                "family": family.name,
                "set_by": _PLACES.get(family.name, ""),
                "members": _members(family),
            }
            for family in chosen
        ]


def _members(family: Family[Any]) -> list[dict[str, Any]]:
    """Ours, and those that others installed: these are imported in a process of their own."""
    names = family.members()
    foreign = {name: ref for name, ref in names.items() if family.is_foreign(name)}
    found = {n: _member(family, n, ref) for n, ref in names.items() if n not in foreign}
    for name, ref in foreign.items():
        try:
            told = ask(Question.MEMBER, {"family": family.name, "name": name})
            found[name] = dict(told["member"])
        except ConfigurationError as error:  # one that is broken must not hide the others
            found[name] = _broken(name, ref, error)
    return [found[name] for name in names]


def foreign_member(family_name: str, name: str) -> dict[str, Any]:
    """The same of one installed member, in the process that may import it."""
    family = _family(family_name)
    return _member(family, name, family.members()[name])


def _broken(name: str, reference: str, error: Exception) -> dict[str, Any]:
    about = f"cannot be loaded: {error}"
    return {"type": name, "from": reference, "about": about, "settings": []}


def _family(wanted: str) -> Family[Any]:
    """A family by its name, in the singular or plural, with spaces, dashes or underscores."""
    plain = wanted.lower().replace("-", " ").replace("_", " ").strip()
    names = {family.name: family for family in FAMILIES}
    spellings = {**{f"{n}s": f for n, f in names.items()}, "losses": names["loss"], **names}
    if plain in spellings:
        return spellings[plain]
    close = difflib.get_close_matches(plain, spellings, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigurationError(
        f"no family {wanted!r}{hint} Known: {', '.join(names)}. Fix: give one of them"
    )


def _member(family: Family[Any], name: str, reference: str) -> dict[str, Any]:
    try:
        found: type[Component] = family.resolve(name)
    except (ConfigurationError, ImportError) as error:
        return _broken(name, reference, error)
    member: dict[str, Any] = {
        "type": name,
        "from": reference,
        "about": (found.__doc__ or "").strip().split("\n")[0],
        "settings": [_setting(n, f) for n, f in found.Config.model_fields.items() if n != "type"],
    }
    if issubclass(found, (Loss, PreferenceBuilder)):
        member["examples"] = found.kind_name
    return member


def _setting(name: str, field: Any) -> dict[str, Any]:
    if field.is_required():
        default: Any = "required"
    else:
        default = to_jsonable_python(field.get_default(call_default_factory=True))
    about = " ".join((field.description or "").split())
    return {"name": name, "default": default, "required": field.is_required(), "about": about}


def listing_text(families: list[dict[str, Any]], *, settings: bool) -> str:
    """The list for people; with the settings of each member when asked for."""
    lines: list[str] = []
    for family in families:
        lines.append(f"{family['family']}  (set by {family['set_by']})")
        for member in family["members"]:
            kind = f" [{member['examples']}]" if "examples" in member else ""
            lines.append(f"  {member['type']:<16}{kind} {one_line(member['about'])}")
            for setting in member["settings"] if settings else []:
                default = "required" if setting["required"] else one_line(setting["default"], 40)
                lines.append(
                    f"      {setting['name']}: {default}  - {one_line(setting['about'], 110)}"
                )
    return "\n".join(lines)
