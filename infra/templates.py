"""Reads CloudFormation templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).resolve().parent

#: Most bytes of a template that is sent in the call itself.
#: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
MOST_BYTES = 51_200

Template = Mapping[str, Any]


def path_of(name: str) -> Path:
    """The file of a template: `queue` is infra/queue.yaml."""
    return DIRECTORY / f"{name}.yaml"


def read(name: str) -> Template:
    """A template, with its short forms (`!Ref`) written out (`{"Ref": …}`)."""
    loaded: Template = yaml.load(path_of(name).read_text(), _Loader)
    return loaded


class _Loader(yaml.SafeLoader):
    """Knows the short forms of CloudFormation's functions."""


def _function(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _function)
