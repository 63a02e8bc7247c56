# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""The image definition: its schema, its defaults, and the words in which a mistake in it is reported."""

from __future__ import annotations

import difflib
import typing as t
from copy import deepcopy

try:
    import jsonschema

    JSONSCHEMA_FOUND = True
except ImportError:
    JSONSCHEMA_FOUND = False

NAME = {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"}
SIZE = {"type": "string", "pattern": "^[1-9][0-9]*[MGT]$"}
NEVER: dict[str, t.Any] = {"not": {}}
PACKAGE = {"type": "string", "pattern": "^[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?$"}

BASE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["method"],
    "properties": {
        "method": {"enum": ["bootstrap", "download"]},
        "distribution": {"enum": ["debian"]},
        "release": {"enum": ["bookworm", "trixie"]},
        "packages": {"type": "array", "items": PACKAGE, "uniqueItems": True},
        "mirror": {"type": "string", "pattern": "^(https?|file)://"},
        "url": {"type": "string", "pattern": "^https?://"},
        "checksum": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$"},
        "checksum_url": {"type": "string", "pattern": "^https?://"},
        "checksum_keyring": {"type": "string"},
    },
    "allOf": [
        {
            "if": {"properties": {"method": {"const": "bootstrap"}}},
            "then": {
                "required": ["distribution", "release"],
                "properties": dict.fromkeys(["url", "checksum", "checksum_url", "checksum_keyring"], NEVER),
            },
            "else": {
                "required": ["url"],
                "properties": {"mirror": NEVER, "packages": {"maxItems": 0}},
                "anyOf": [{"required": ["checksum"]}, {"required": ["checksum_url", "checksum_keyring"]}],
            },
        }
    ],
}

BUILDERS = ["qemu", "amazon-ebs"]
# What describes the local machine or disk and decides nothing about an AMI.
OF_LOCAL_BUILDS = ("base", "build_method", "cpus", "memory", "checks", "budgets")

AMAZON_EBS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["instance_type", "source_ami"],
    "properties": {
        "region": {"type": "string", "pattern": "^[a-z]{2}(-[a-z]+)+-[0-9]$"},
        "profile": {"type": "string"},
        "endpoint_url": {"type": "string", "pattern": "^https?://"},
        "instance_type": {"type": "string", "pattern": r"^[a-z0-9-]+\.[a-z0-9-]+$"},
        "source_ami": {
            "type": "object",
            "additionalProperties": False,
            "required": ["owner", "name"],
            "properties": {
                "owner": {"type": "string", "pattern": "^([0-9]{12}|amazon|aws-marketplace|self)$"},
                "name": {"type": "string", "minLength": 1},
            },
        },
        "kms_key_id": {"type": "string"},
        "nested_virtualization": {"type": "boolean"},
        "spot": {"type": "boolean"},
        "subnet_id": {"type": "string", "pattern": "^(subnet-[0-9a-f]+)?$"},
        "public_ip": {"type": "boolean"},
        "security_group_ids": {"type": "array", "items": {"type": "string", "pattern": "^sg-[0-9a-f]+$"}},
        "ssh_interface": {"enum": ["public_ip", "private_ip"]},
        "ssh_source_cidrs": {
            "type": "array",
            "items": {
                "type": "string",
                "pattern": "^[0-9a-f.:]+/([89]|[1-9][0-9]+)$",
                "description": "who may reach SSH; a prefix below 8 would be half the Internet",
            },
        },
        "ssh_host": {"type": "string"},
        "ssh_port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "iam_instance_profile": {"type": "string"},
        "tags": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}

# Either one builder or several, the first of which is the default.
BUILDS_AN_AMI = {
    "if": {"type": "array"},
    "then": {"contains": {"const": "amazon-ebs"}},
    "else": {"const": "amazon-ebs"},
}
BUILDS_ONLY_AN_AMI = {"enum": ["amazon-ebs", ["amazon-ebs"]]}

SCHEMA: dict[str, t.Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": NAME,
        "description": {"type": "string"},
        "base": BASE,
        "builder": {
            "if": {"type": "array"},
            "then": {"items": {"enum": BUILDERS}, "minItems": 1, "uniqueItems": True},
            "else": {"enum": BUILDERS},
        },
        "amazon_ebs": AMAZON_EBS,
        "build_method": {"enum": ["auto", "vm", "rootfs"]},
        "needs_kvm": {"type": "boolean"},
        "disk_size": SIZE,
        "cpus": {"type": "integer", "minimum": 1, "maximum": 64},
        "memory": {"type": "integer", "minimum": 512, "description": "MiB"},
        "roles": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "vars": {"type": "object"},
        "checks": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "minItems": 1},
        "budgets": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"size": {"type": "string", "pattern": "^[1-9][0-9]*(MB|GB)$"}},
        },
    },
    "allOf": [
        {
            "if": {"required": ["builder"], "properties": {"builder": BUILDS_ONLY_AN_AMI}},
            "else": {"required": ["base"]},
        },
        {
            "if": {"required": ["builder"], "properties": {"builder": BUILDS_AN_AMI}},
            "then": {"required": ["amazon_ebs"]},
        },
    ],
}


class DefinitionError(Exception):
    """A definition that cannot be used; the text names the file, the key and what is allowed."""


def load_definition(
    data: t.Any,
    defaults: dict[str, t.Any],
    *,
    source: str,
    known_roles: t.Sequence[str] = (),
    known_checks: t.Sequence[str] = (),
    builder: str | None = None,
) -> dict[str, t.Any]:
    """Return *data* validated and completed from *defaults* (one level of nesting is merged), for one builder.

    *source* is the file's name, for messages. A role with a dot is a role of another collection, which is left to
    Ansible to find. *builder* picks one of the definition's; without it the first counts.
    """
    if not JSONSCHEMA_FOUND:
        raise DefinitionError("The Python library jsonschema is needed on the controller: pip install jsonschema")
    if not isinstance(data, dict):
        raise DefinitionError(f"{source}: an image definition is a mapping of keys, this is {_kind(data)}.")
    problems = _schema_problems(data)
    problems += _unknown_names("roles", data, [name for name in known_roles if name != "cleanup"])
    problems += _unknown_names("checks", data, known_checks)
    if "cleanup" in _names("roles", data):
        problems.append("roles: 'cleanup' is always applied last and must not be listed")
    builders = builders_of({**defaults, **data})
    if builder and not problems and builder not in builders:
        problems.append(f"builder: '{builder}' was asked for; this definition has: {', '.join(builders)}")
    if problems:
        raise DefinitionError("\n".join(f"{source}: {problem}" for problem in dict.fromkeys(problems)))
    return _for_builder(_merged(defaults, data), builder or builders[0])


def output_name(definition: t.Mapping[str, t.Any], builders: t.Sequence[str]) -> str:
    """Return the name of the output folder: what different builders make of one definition must not mix."""
    first = definition["builder"] == builders[0]
    return str(definition["name"]) if first else f"{definition['name']}-{definition['builder']}"


def builders_of(data: t.Mapping[str, t.Any]) -> list[str]:
    """Return the builders of a definition; the first is the default."""
    found = data["builder"]
    return found if isinstance(found, list) else [found]


def _for_builder(definition: dict[str, t.Any], builder: str) -> dict[str, t.Any]:
    """Leave out what is another builder's: it must not count as an input of the image."""
    dropped = OF_LOCAL_BUILDS if builder == "amazon-ebs" else ("amazon_ebs",)
    return {**{key: value for key, value in definition.items() if key not in dropped}, "builder": builder}


def _merged(defaults: dict[str, t.Any], data: dict[str, t.Any]) -> dict[str, t.Any]:
    result = deepcopy(defaults)
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = {**result[key], **deepcopy(value)}
        else:
            result[key] = deepcopy(value)
    return result


def _schema_problems(data: dict[str, t.Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    errors = sorted(validator.iter_errors(data), key=lambda error: [str(part) for part in error.absolute_path])
    return [message for error in errors for message in _messages(error)]


def _messages(error: t.Any) -> list[str]:
    """Say one schema error as a user would: key, what is there, what may be there."""
    key = _path(error.absolute_path)
    where = f"{key}: " if key else ""
    if error.validator == "additionalProperties":
        allowed = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(allowed), key=str)
        parent = error.absolute_path
        return [f"unknown key '{_path([*parent, name])}'{_allowed(name, allowed)}" for name in unknown]
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return [f"{where}missing key '{name}'" for name in missing]
    if error.validator == "anyOf":
        return [f"{where}needs 'checksum', or 'checksum_url' together with 'checksum_keyring'"]
    if error.validator == "enum":
        return [f"{where}{error.instance!r} is not possible{_allowed(error.instance, error.validator_value)}"]
    if error.validator == "type":
        return [f"{where}expected {error.validator_value}, found {_kind(error.instance)} ({error.instance!r})"]
    if error.validator == "not":
        return [f"'{key}' cannot be used with this base.method"]
    if error.validator == "pattern":
        reason = f" ({error.schema['description']})" if "description" in error.schema else ""
        return [f"{where}{error.instance!r} does not have the form {error.validator_value}{reason}"]
    return [f"{where}{error.message}"]


def _names(key: str, data: dict[str, t.Any]) -> list[str]:
    names = data.get(key, [])
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _unknown_names(key: str, data: dict[str, t.Any], known: t.Sequence[str]) -> list[str]:
    own = [name for name in _names(key, data) if "." not in name and name != "cleanup"]
    return [f"{key}: unknown {key[:-1]} '{name}'{_allowed(name, known)}" for name in own if known and name not in known]


def _allowed(word: t.Any, allowed: t.Iterable[t.Any]) -> str:
    names = [str(name) for name in allowed]
    close = difflib.get_close_matches(str(word), names, n=1)
    return (f"; did you mean '{close[0]}'?" if close else "") + f" Allowed: {', '.join(names)}"


def _path(parts: t.Iterable[t.Any]) -> str:
    return ".".join(str(part) for part in parts)


def _kind(value: t.Any) -> str:
    kinds = {"dict": "object", "list": "array", "str": "string", "bool": "boolean", "int": "integer", "float": "number"}
    return kinds.get(type(value).__name__, "nothing" if value is None else type(value).__name__)
