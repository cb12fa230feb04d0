"""What moto's CloudFormation gets wrong about conditions and changes.

- It compares templates as they are written, so that a parameter that acts through a condition, a
  mapping or `Fn::Sub` changes nothing.
- After a change set it keeps the outputs of before.
- It exports what an output would have if its condition were true.
- It cannot read a list among the parameters that it has kept.
- In a list, it makes `null` of `AWS::NoValue`.
- It deletes what is to be retained except when its creation fails.
"""

import copy
from typing import Any

from moto.cloudformation import parsing
from moto.cloudformation.models import ChangeSet
from moto.cloudformation.parsing import OutputMap, ResourceMap

from tests.cloudformation.template import fold


def _folded(template: Any, parameters: Any) -> dict[str, Any]:
    # Before its first change set, a new stack has no template.
    return fold(template, parameters) if template.get("Resources") else {}


def _difference(self: Any, template: Any, parameters: Any = None) -> dict[str, list[str]]:
    old = _folded(self._template, self.input_parameters)
    new = _folded(template, parameters or {})
    return {
        "Add": [name for name in new if name not in old],
        "Modify": [name for name in new if name in old and new[name] != old[name]],
        "Remove": [name for name in old if name not in new],
    }


def _actions(self: Any, template: Any, parameters: Any = None) -> dict[str, Any]:
    resources = {**self._resource_json_map, **template["Resources"]}
    return {
        action: {
            name: {"LogicalResourceId": name, "ResourceType": resources[name]["Type"]}
            for name in names
        }
        for action, names in _difference(self, template, parameters).items()
    }


def _updated(update: Any) -> Any:
    def apply(self: Any, template: Any, parameters: Any = None) -> None:
        removed = _difference(self, template, parameters)["Remove"]
        update(self, copy.deepcopy(template), _as_given(parameters or {}) or None)
        for name in removed:
            self._parsed_resources.pop(name, None)

    return apply


def _as_given(parameters: Any) -> dict[str, Any]:
    return {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in parameters.items()
    }


def _retaining(delete: Any) -> Any:
    def deleted(self: Any) -> None:
        for resource in self._resource_json_map.values():
            if resource.get("DeletionPolicy") == "RetainExceptOnCreate":
                resource["DeletionPolicy"] = "Retain"
        delete(self)

    return deleted


def _apply(self: Any) -> None:
    self.stack.resource_map.update(self.template_dict, self.parameters)
    self.stack.output_map = self.stack._create_output_map()


def _diff(diff: Any) -> Any:
    def changes(self: Any) -> Any:
        actions = self.stack.resource_map.build_change_set_actions
        self.stack.resource_map.build_change_set_actions = lambda template: actions(
            template, self.parameters
        )
        try:
            return diff(self)
        finally:
            del self.stack.resource_map.build_change_set_actions

    return changes


def _without_none(clean: Any) -> Any:
    def cleaned(given: Any, resources: Any) -> Any:
        found = clean(given, resources)
        return [each for each in found if each is not None] if isinstance(found, list) else found

    return cleaned


def _exports(exports: Any) -> Any:
    def those_that_exist(self: Any) -> Any:
        conditions = self._resource_map.lazy_condition_map
        outputs = self._output_json_map
        self._output_json_map = {
            name: each
            for name, each in (outputs or {}).items()
            if "Condition" not in each or conditions[each["Condition"]]
        }
        try:
            return exports.fget(self)
        finally:
            self._output_json_map = outputs

    return property(those_that_exist)


def complete() -> None:
    """Make moto do as CloudFormation does."""
    parsing.clean_json = _without_none(parsing.clean_json)
    outputs: Any = OutputMap
    outputs.exports = _exports(outputs.exports)
    resources: Any = ResourceMap
    resources.build_resource_diff = _difference
    resources.build_change_set_actions = _actions
    resources.update = _updated(resources.update)
    resources.delete = _retaining(resources.delete)
    changes: Any = ChangeSet
    changes.diff = _diff(changes.diff)
    changes.apply = _apply
