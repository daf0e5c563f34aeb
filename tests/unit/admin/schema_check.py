"""A small JSON Schema checker: the keywords that the API's document uses, and an error for any other."""

from __future__ import annotations

import re
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
ANNOTATIONS = frozenset({"title", "description", "default"})


def mismatches(value: Any, schema: dict[str, Any], components: dict[str, Any], where: str = "$") -> list[str]:
    """What of `value` breaks `schema`; components: `#/components/schemas` of the document."""
    found: list[str] = []
    for keyword, rule in schema.items():
        if keyword in ANNOTATIONS:
            continue
        found += RULES[keyword](value, rule, schema, components, where)
    return found


def _reference(value: Any, rule: str, _: Any, components: dict[str, Any], where: str) -> list[str]:
    return mismatches(value, components[rule.removeprefix("#/components/schemas/")], components, where)


def _any_of(value: Any, rule: list[Any], _: Any, components: dict[str, Any], where: str) -> list[str]:
    tries = [mismatches(value, choice, components, where) for choice in rule]
    return [] if any(not one for one in tries) else [f"{where}: fits none of {len(rule)} choices"]


def _type(value: Any, rule: str, _: Any, __: Any, where: str) -> list[str]:
    wrong = not isinstance(value, TYPES[rule]) or (isinstance(value, bool) and rule in {"integer", "number"})
    return [f"{where}: {value!r} is no {rule}"] if wrong else []


def _properties(value: Any, rule: dict[str, Any], _: Any, components: dict[str, Any], where: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [
        text
        for key, part in rule.items()
        if key in value
        for text in mismatches(value[key], part, components, f"{where}.{key}")
    ]


def _required(value: Any, rule: list[str], _: Any, __: Any, where: str) -> list[str]:
    return [f"{where}: {key} is missing" for key in rule if isinstance(value, dict) and key not in value]


def _additional(value: Any, rule: Any, schema: dict[str, Any], components: dict[str, Any], where: str) -> list[str]:
    others = value.keys() - schema.get("properties", {}).keys() if isinstance(value, dict) else set()
    if rule is False:
        return [f"{where}: {key} is not known" for key in others]
    return [text for key in others for text in mismatches(value[key], rule, components, f"{where}.{key}")]


def _items(value: Any, rule: Any, _: Any, components: dict[str, Any], where: str) -> list[str]:
    if not isinstance(value, list):
        return []
    return [text for i, one in enumerate(value) for text in mismatches(one, rule, components, f"{where}[{i}]")]


def _simple(test: Any) -> Any:
    def check(value: Any, rule: Any, _: Any, __: Any, where: str) -> list[str]:
        return [] if test(value, rule) else [f"{where}: {value!r} against {rule!r}"]

    return check


RULES: dict[str, Any] = {
    "$ref": _reference,
    "anyOf": _any_of,
    "type": _type,
    "properties": _properties,
    "required": _required,
    "additionalProperties": _additional,
    "items": _items,
    "enum": _simple(lambda value, rule: value in rule),
    "pattern": _simple(lambda value, rule: not isinstance(value, str) or re.search(rule, value) is not None),
    "minLength": _simple(lambda value, rule: not isinstance(value, str) or len(value) >= rule),
    "maxLength": _simple(lambda value, rule: not isinstance(value, str) or len(value) <= rule),
    "minimum": _simple(lambda value, rule: not isinstance(value, int | float) or value >= rule),
    "maximum": _simple(lambda value, rule: not isinstance(value, int | float) or value <= rule),
    "exclusiveMinimum": _simple(lambda value, rule: not isinstance(value, int | float) or value > rule),
}
