"""Reads a template, and puts in the values of its parameters."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

INFRA = Path(__file__).resolve().parents[2] / "infra"

#: The value of what is left out.
NO_VALUE: Any = object()


class _Loader(yaml.SafeLoader):
    """YAML with the short forms of CloudFormation's functions."""


def _function(loader: Any, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if suffix == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _function)


def parse(text: str) -> dict[str, Any]:
    """A template, with the long forms of the functions."""
    return dict(yaml.load(text, _Loader))


def read(name: str) -> dict[str, Any]:
    """A template of `infra/`."""
    return parse((INFRA / name).read_text())


def defaults(template: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that have a default, with it."""
    given = template.get("Parameters", {})
    return {name: each["Default"] for name, each in given.items() if "Default" in each}


def fold(template: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The resources that exist with these parameters, in which only references to resources and
    pseudo parameters are left."""
    return _Folding(template, {**defaults(template), **parameters}).resources()


def refusals(template: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[str]:
    """What the rules of a template say against these parameters. CloudFormation then makes
    nothing."""
    return list(_Folding(template, {**defaults(template), **parameters}).refusals())


class _Folding:
    def __init__(self, template: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self._template, self._values = template, values

    def resources(self) -> dict[str, Any]:
        return {
            name: self._value(each)
            for name, each in self._template["Resources"].items()
            if "Condition" not in each or self._holds(each["Condition"])
        }

    def refusals(self) -> Iterator[str]:
        for rule in self._template.get("Rules", {}).values():
            if "RuleCondition" not in rule or self._truth(rule["RuleCondition"]):
                for each in rule["Assertions"]:
                    if not self._truth(each["Assert"]):
                        yield each["AssertDescription"]

    def _holds(self, condition: str) -> bool:
        return bool(self._truth(self._template["Conditions"][condition]))

    def _truth(self, given: Any) -> bool:
        ((name, value),) = given.items()
        if name == "Condition":
            return self._holds(value)
        if name == "Fn::Equals":
            one, other = (str(self._value(each)) for each in value)
            return one == other
        parts = [self._truth(each) for each in value]
        return {"Fn::And": all(parts), "Fn::Or": any(parts), "Fn::Not": not parts[0]}[name]

    def _value(self, given: Any) -> Any:
        if isinstance(given, list):
            return [each for each in map(self._value, given) if each is not NO_VALUE]
        if not isinstance(given, dict):
            return given
        if len(given) == 1:
            ((name, value),) = given.items()
            if name in _FUNCTIONS:
                return _FUNCTIONS[name](self, value)
        folded = {name: self._value(value) for name, value in given.items()}
        return {name: value for name, value in folded.items() if value is not NO_VALUE}

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return NO_VALUE
        return self._values.get(name, {"Ref": name})

    def _if(self, given: Any) -> Any:
        condition, yes, no = given
        return self._value(yes if self._holds(condition) else no)

    def _find_in_map(self, given: Any) -> Any:
        name, *keys = (self._value(each) for each in given)
        found = self._template["Mappings"][name]
        for key in keys:
            found = found[str(key)]
        return found

    def _sub(self, given: Any) -> Any:
        if not isinstance(given, str):
            return {"Fn::Sub": given}

        def put(match: "re.Match[str]") -> str:
            return str(self._values.get(match[1], match[0]))

        text = re.sub(r"\$\{([\w:.]+)\}", put, given)
        return {"Fn::Sub": text} if "${" in text else text


_FUNCTIONS = {
    "Ref": _Folding._ref,
    "Fn::If": _Folding._if,
    "Fn::FindInMap": _Folding._find_in_map,
    "Fn::Sub": _Folding._sub,
}
