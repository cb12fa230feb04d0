"""Finds the queues that `destroy` has left, so that a new stack can import them as they are.

CloudFormation does not find them by itself: `ImportExistingResources` takes neither a name that is
made of a parameter nor a type whose identifier is read-only, as the URL of a queue is.
https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/import-resources-automatically.html
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infra.stacks import StackError
from infra.templates import read

#: The queues of infra/queue.yaml, and what follows the name of the stage's queue in theirs.
QUEUES = {"Queue": "", "DeadLetterQueue": "-dlq"}

#: The key of infra/queue.yaml.
KEY = "Key"


@dataclass(frozen=True)
class Retained:
    """What is left of a stack of queues."""

    identifiers: Mapping[str, Mapping[str, str]]
    """By the names of the resources: the property that identifies it, and its value."""
    template: str
    """A template of these resources alone, as they are now. Its parameter is `QueueName`."""

    @property
    def has_key(self) -> bool:
        """Whether the messages are encrypted by a key that was left, too."""
        return KEY in self.identifiers


def find(sqs: Any, kms: Any, name: str) -> Retained | None:
    """What is left of the queue with this name and its dead-letter queue; None if neither exists.

    Raises StackError if they are encrypted by a key that no stack can have made.
    """
    found = dict(_queues(sqs, name))
    if not found:
        return None
    template = read("queue")
    identifiers = {logical: {"QueueUrl": url} for logical, (url, _) in found.items()}
    resources = {
        logical: _as_it_is(resource, _properties_of_queue(resource, attributes))
        for logical, (_, attributes) in found.items()
        for resource in [template["Resources"][logical]]
    }
    if key := _key_of(name, [attributes for _, attributes in found.values()]):
        identifiers[KEY] = {"KeyId": key}
        resources[KEY] = _as_it_is(template["Resources"][KEY], _properties_of_key(kms, key))
    parameters = {"QueueName": {"Type": "String"}}
    return Retained(identifiers, json.dumps({"Parameters": parameters, "Resources": resources}))


def key_of(attributes: Mapping[str, str]) -> str | None:
    """The id of the key by which a queue is encrypted; None if it is SQS's own."""
    key = attributes.get("KmsMasterKeyId")
    return key.rpartition(":key/")[2] if key else None


def _queues(sqs: Any, name: str) -> Iterator[tuple[str, tuple[str, Mapping[str, str]]]]:
    for logical, suffix in QUEUES.items():
        try:
            url = sqs.get_queue_url(QueueName=name + suffix)["QueueUrl"]
        except sqs.exceptions.QueueDoesNotExist:
            continue
        found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        yield logical, (url, found["Attributes"])


def _key_of(name: str, queues: list[Mapping[str, str]]) -> str | None:
    keys = {key for queue in queues if (key := key_of(queue)) is not None}
    if len(keys) > 1 or any("/" in key for key in keys):
        raise StackError(
            f"The queues {name} and {name}-dlq exist, and are encrypted by keys that no stack has "
            f"made: {', '.join(sorted(keys))}. Empty and delete them, or deploy another stage."
        )
    return keys.pop() if keys else None


def _as_it_is(resource: Mapping[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    """A resource of the template with the properties that it has in fact. The next change set then
    shows what the template changes of them."""
    kept = ("Type", "DeletionPolicy", "UpdateReplacePolicy")
    return {**{key: resource[key] for key in kept}, "Properties": properties}


def _properties_of_queue(
    resource: Mapping[str, Any], attributes: Mapping[str, str]
) -> dict[str, Any]:
    wanted = resource["Properties"]
    # A queue with a key has the other attribute too, and CloudFormation takes one of them only.
    given = {name: value for name, value in attributes.items() if name in wanted and value}
    if "KmsMasterKeyId" in given:
        given.pop("SqsManagedSseEnabled", None)
    values = {name: _VALUES.get(name, int)(value) for name, value in given.items()}
    # Its name stays as the template has it. Otherwise the next change set might replace the queue.
    return {"QueueName": wanted["QueueName"], **values}


#: How the value of an attribute becomes that of a property. All others are numbers.
_VALUES: Mapping[str, Callable[[str], Any]] = {
    "KmsMasterKeyId": str,
    "SqsManagedSseEnabled": lambda value: value == "true",
    "RedrivePolicy": json.loads,
    "RedriveAllowPolicy": json.loads,
}


def _properties_of_key(kms: Any, key: str) -> dict[str, Any]:
    policy = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    return {
        "Description": kms.describe_key(KeyId=key)["KeyMetadata"]["Description"],
        "EnableKeyRotation": kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"],
        "KeyPolicy": json.loads(policy),
    }
