"""The EC2 Query protocol: form in, XML out, both shaped by botocore's own service model.

Requests: a nested value is flattened into dotted names, ``Filter.1.Value.2``; a member's name on the wire is
its ``queryName``, else its ``locationName`` with a capital, else its own name; lists are numbered from 1 and
have no name of their own. Replies: a member's element is its ``locationName``, else its own name; a list's
elements are ``item``. The service model loads in about a quarter of a second, so it is loaded at the first
request.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any
from xml.sax.saxutils import escape  # escapes; nothing is parsed here

from vpccni.lab.ec2.errors import Ec2Fault, invalid_value

_NOT_PARAMETERS = frozenset(
    {"Action", "Version", "AWSAccessKeyId", "Signature", "SignatureMethod", "SignatureVersion", "Timestamp"}
)


@cache
def _service() -> Any:
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    return ServiceModel(Loader().load_service_model("ec2", "service-2"), "ec2")


def _operation(action: str) -> Any:
    from botocore.model import OperationNotFoundError

    try:
        return _service().operation_model(action)
    except OperationNotFoundError:
        raise Ec2Fault("InvalidAction", f"The action {action} is not valid for this web service.") from None


# Requests ----------------------------------------------------------------------------------------------


def decode_request(form: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Return the action and its parameters in botocore's input shape.

    Raises:
        Ec2Fault: No action, an unknown one, a parameter that EC2 does not have, or one of the wrong type.
    """
    action = form.get("Action", "")
    if not action:
        raise Ec2Fault("MissingAction", "The request must contain the parameter Action")
    shape = _operation(action).input_shape
    tree: dict[str, Any] = {}
    for name, value in form.items():
        if name not in _NOT_PARAMETERS and not name.startswith("X-Amz-"):
            _plant(tree, name, value)
    return action, {} if shape is None else _decode_structure(shape, tree, "")


def _plant(tree: dict[str, Any], name: str, value: str) -> None:
    parts = name.split(".")
    node = tree
    for part in parts[:-1]:
        below = node.setdefault(part, {})
        if not isinstance(below, dict):
            raise invalid_value(f"The parameter {name} is both a value and a structure")
        node = below
    if isinstance(node.get(parts[-1]), dict):
        raise invalid_value(f"The parameter {name} is both a value and a structure")
    node[parts[-1]] = value


def _name_on_wire(shape: Any, own_name: str) -> str:
    serialization = shape.serialization
    if "queryName" in serialization:
        return str(serialization["queryName"])
    name = serialization.get("name")
    return own_name if name is None else name[0].upper() + name[1:]


def _decode_structure(shape: Any, node: Any, path: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise invalid_value(f"Value ({node}) for parameter {path} is invalid: a structure is expected")
    members = _members_by_wire_name(shape)
    decoded = {}
    for name, value in node.items():
        found = members.get(name)
        if found is None:
            raise Ec2Fault("UnknownParameter", f"The parameter {path}{name} is not recognized")
        own_name, member = found
        decoded[own_name] = _decode(member, value, f"{path}{name}")
    return decoded


@cache
def _members_by_wire_name(shape: Any) -> dict[str, tuple[str, Any]]:
    return {_name_on_wire(member, name): (name, member) for name, member in shape.members.items()}


def _decode(shape: Any, value: Any, path: str) -> Any:
    match shape.type_name:
        case "structure":
            return _decode_structure(shape, value, path + ".")
        case "list":
            return _decode_list(shape, value, path)
        case "integer" | "long" | "double" | "float" | "boolean" | "string" | "timestamp" | "blob":
            return _decode_scalar(shape.type_name, value, path)
        case other:
            raise invalid_value(f"The parameter {path} has a type that is not modelled ({other})")


def _decode_list(shape: Any, value: Any, path: str) -> list[Any]:
    if value == "":
        return []  # how an empty list is written
    if not isinstance(value, dict):
        raise invalid_value(f"Value ({value}) for parameter {path} is invalid: a numbered list is expected")
    try:
        numbered = sorted((int(number), item) for number, item in value.items())
    except (ValueError, TypeError):
        raise invalid_value(f"The parameter {path} is not a numbered list") from None
    return [_decode(shape.member, item, f"{path}.{number}") for number, item in numbered]


def _decode_scalar(type_name: str, value: Any, path: str) -> Any:
    if isinstance(value, dict):
        raise invalid_value(f"The parameter {path} is a value, not a structure")
    try:
        if type_name in ("integer", "long"):
            return int(value)
        if type_name in ("double", "float"):
            return float(value)
    except ValueError:
        raise invalid_value(f"Value ({value}) for parameter {path} is invalid. Must be a number") from None
    if type_name == "boolean":
        if value.lower() not in ("true", "false"):
            raise invalid_value(f"Value ({value}) for parameter {path} is invalid. Must be true or false")
        return value.lower() == "true"
    return value


# Replies -----------------------------------------------------------------------------------------------


def encode_reply(action: str, reply: Mapping[str, Any], request_id: str) -> bytes:
    """Return the XML of a reply in botocore's output shape; a member that EC2 does not have is our bug.

    Raises:
        KeyError: The reply has such a member.
    """
    operation = _operation(action)
    namespace = _service().metadata["xmlNamespace"]
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n',
        f'<{action}Response xmlns="{namespace}"><requestId>{request_id}</requestId>',
    ]
    if operation.output_shape is None:
        parts.append("<return>true</return>")
    else:
        _encode_structure(operation.output_shape, reply, parts)
    parts.append(f"</{action}Response>")
    return "".join(parts).encode()


def encode_fault(fault: Ec2Fault, request_id: str) -> bytes:
    """Return the XML of an error."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Response><Errors><Error><Code>{escape(fault.code)}</Code><Message>{escape(fault.message)}</Message>"
        f"</Error></Errors><RequestID>{request_id}</RequestID></Response>"
    ).encode()


def _encode_structure(shape: Any, value: Mapping[str, Any], parts: list[str]) -> None:
    members = shape.members
    for name, item in value.items():
        member = members[name]
        _encode(member, member.serialization.get("name", name), item, parts)


def _encode(shape: Any, element: str, value: Any, parts: list[str]) -> None:
    if shape.type_name == "list" and shape.serialization.get("flattened"):
        for item in value:
            _encode(shape.member, element, item, parts)
        return
    parts.append(f"<{element}>")
    if shape.type_name == "structure":
        _encode_structure(shape, value, parts)
    elif shape.type_name == "list":
        item_element = shape.member.serialization.get("name", "member")
        for item in value:
            _encode(shape.member, item_element, item, parts)
    else:
        parts.append(escape(_text(value)))
    parts.append(f"</{element}>")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
    return str(value)
