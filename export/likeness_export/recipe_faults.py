"""What is wrong with a recipe, in the words of its file."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel

from likeness_export.encoders import AnyEncoderConfig
from likeness_export.networks.fusion import FusionConfig
from likeness_export.serving_section import StepSection


def explain(problem: Any, recipe: type[BaseModel]) -> str:
    """Return an entry of ``ValidationError.errors()`` as a line: the key as the file spells it, its fault and value."""
    if not problem["loc"]:  # a check across sections names the key itself
        return f"  {problem['msg'].removeprefix('Value error, ')}"
    keys, section = _locate(recipe, *problem["loc"])
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind.startswith("union_tag_"):
        keys.append(context["discriminator"].strip("'"))
        value = value.get(keys[-1], value)
        known = "is not known" if kind == "union_tag_invalid" else "is missing"
        text = f"{known}; allowed are: {', '.join(_MEMBERS[keys[0]])}"
    elif kind == "extra_forbidden":
        text = f"there is no such key; allowed here are: {', '.join(section.model_fields)}"
    elif kind == "missing":
        about = section.model_fields[keys[-1]].description if keys[-1] in section.model_fields else None
        text = f"is missing ({about})" if about else "is missing"
    else:
        text = _WORDS.get(kind, re.sub(r"^\w+ should ", "must ", problem["msg"].removeprefix("Value error, ")))
    shown = "" if isinstance(value, dict | list | tuple) else f" (given: {value!r})"
    return f"  {'.'.join(keys)}: {text}{shown}"


def _locate(recipe: type[BaseModel], head: str, *rest: str | int) -> tuple[list[str], type[BaseModel]]:
    """Return a key as the file spells it, and the section that it stands in.

    Pydantic puts the discriminator's value into the location behind the union that it chooses from; it is no key.
    """
    place = {"towers": 1, "fusion": 0}.get(head, len(rest))
    section = recipe.model_fields[head].annotation if rest else recipe
    if head == "serving" and len(rest) > 2:  # serving.steps.<model>.<key>
        section = StepSection
    if place < len(rest):
        section = _MEMBERS[head].get(str(rest[place]))
    keys = [head, *(str(part) for part in (*rest[:place], *rest[place + 1 :]))]
    return keys, section if isinstance(section, type) and issubclass(section, BaseModel) else recipe


def _members(union: Any, key: str) -> dict[str, type[BaseModel]]:
    return {get_args(member.model_fields[key].annotation)[0]: member for member in get_args(union)}


# Section -> what its discriminator may say -> the keys that then belong there.
_MEMBERS = {
    "towers": _members(AnyEncoderConfig, "encoder"),
    "fusion": _members(get_args(FusionConfig)[0], "kind"),
}
# Pydantic speaks of Python's types; a recipe is TOML.
_WORDS = {
    "tuple_type": "must be a list",
    "dict_type": "must be a section",
    "model_type": "must be a section",
    "model_attributes_type": "must be a section",
    "too_short": "must not be empty",
}
