# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""The options: one description for the Ansible module and for use as a plain library."""

from __future__ import annotations

import difflib
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._net_aws import IMDS
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import InputError

_PROXY: dict[str, t.Any] = {
    "proxy": {"type": "str", "default": "environment"},
    "proxy_username": {"type": "str"},
    "proxy_password": {"type": "str", "no_log": True},
}

SPEC: dict[str, t.Any] = {
    "interfaces": {"type": "list", "elements": "str", "default": ["*"]},
    "expect": {
        "type": "dict",
        "default": {},
        "options": {
            "mtu": {"type": "int"},
            "address_family": {"type": "str", "choices": ["ipv4", "ipv6", "dual"]},
        },
    },
    "default_route": {"type": "bool", "default": True},
    "mtu": {
        "type": "dict",
        "options": {
            "targets": {"type": "list", "elements": "str", "required": True},
            "size": {"type": "int"},
        },
    },
    "dns": {
        "type": "dict",
        "options": {
            "names": {"type": "list", "elements": "str", "default": []},
            "servers": {"type": "list", "elements": "str"},
            "hijack_probe": {"type": "bool", "default": False},
            "hijack_domain": {"type": "str", "default": "invalid"},
        },
    },
    "icmp": {
        "type": "dict",
        "options": {
            "targets": {"type": "list", "elements": "str", "required": True},
            "required": {"type": "bool", "default": False},
            "tcp_port": {"type": "int", "default": 443},
        },
    },
    "tcp": {"type": "list", "elements": "str", "default": []},
    "http": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "url": {"type": "str", "required": True},
            "expect_status": {"type": "list", "elements": "int", "default": [200]},
            "expect_body": {"type": "str"},
            "expect_issuer": {"type": "str"},
            "validate_certs": {"type": "bool", "default": True},
            **_PROXY,
        },
    },
    "apt": {
        "type": "dict",
        "options": {
            "configured": {"type": "bool", "default": False},
            "repositories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "uri": {"type": "str", "required": True},
                    "suite": {"type": "str", "required": True},
                    "keyring": {"type": "path"},
                },
            },
            **_PROXY,
        },
    },
    "time": {
        "type": "dict",
        "options": {
            "synchronised": {"type": "bool", "default": True},
            "servers": {"type": "list", "elements": "str", "default": []},
            "max_offset": {"type": "float", "default": 1.0},
        },
    },
    "imds": {"type": "bool", "default": False},
    "imds_endpoint": {"type": "str", "default": IMDS},
    "ssm": {
        "type": "dict",
        "options": {
            "region": {"type": "str", "required": True},
            "agent_version": {"type": "str"},
        },
    },
    "ca_path": {"type": "path"},
    "timeout": {"type": "float", "default": 10.0},
    "retries": {"type": "int", "default": 0},
    "parallel": {"type": "int", "default": 64},
    "fail_on": {"type": "list", "elements": "str", "choices": ["fail", "warn", "skip"], "default": []},
}

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "path": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
}


def complete(given: t.Any, spec: t.Mapping[str, t.Any] | None = None, where: str = "") -> dict[str, t.Any]:
    """*given* with all defaults, for a caller without Ansible; InputError names what does not fit."""
    spec = SPEC if spec is None else spec
    if not isinstance(given, dict):
        raise InputError(f"{where or 'the options'}: expected a mapping, not {given!r}")
    unknown = sorted(set(map(str, given)) - set(spec))
    if unknown:
        near = difflib.get_close_matches(unknown[0], spec, 1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(spec))}"
        raise InputError(f"{where}{'.' if where else ''}{unknown[0]}: there is no such option; {advice}")
    result = {}
    for name, option in spec.items():
        place = f"{where}.{name}" if where else name
        value = given.get(name, option.get("default"))
        if value is None:
            if option.get("required"):
                raise InputError(f"{place}: this option is required")
            result[name] = None
            continue
        result[name] = _typed(value, option, place)
    return result


def _typed(value: t.Any, option: t.Mapping[str, t.Any], place: str) -> t.Any:
    kind = option["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise InputError(f"{place}: expected {kind}, not {value!r}")
    if kind == "list":
        item = {**option, "type": option["elements"]}
        return [_typed(each, item, f"{place}[{number}]") for number, each in enumerate(value)]
    if kind == "dict" and "options" in option:
        return complete(value, option["options"], place)
    if "choices" in option and value not in option["choices"]:
        raise InputError(f"{place}: {value!r} is not possible; there are {', '.join(option['choices'])}")
    return value
