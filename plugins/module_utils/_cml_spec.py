# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""The options of cml_gui_check: one description for the modules that offer them."""

from __future__ import annotations

import re
import typing as t

from ansible.module_utils.basic import env_fallback
from ansible_collections.goldsmith.images.plugins.module_utils import _cml_gui
from ansible_collections.goldsmith.images.plugins.module_utils._cml_version import Expectation
from ansible_collections.goldsmith.images.plugins.module_utils._https_client import Trust, parse_place

SPEC: dict[str, t.Any] = {
    "host": {"type": "str", "required": True, "aliases": ["url"], "fallback": (env_fallback, ["CML_HOST"])},
    "port": {"type": "int"},
    "level": {"type": "str", "choices": [*_cml_gui.BROWSER, *_cml_gui.LEVELS[2:]], "default": "ready"},
    "fail": {"type": "bool", "default": False},
    "username": {"type": "str", "fallback": (env_fallback, ["CML_USERNAME"])},
    "password": {"type": "str", "no_log": True, "fallback": (env_fallback, ["CML_PASSWORD"])},
    "validate_certs": {"type": "bool", "default": True},
    "ca_path": {"type": "path"},
    "fingerprint": {"type": "str"},
    "timeout": {"type": "float", "default": 15.0},
    "wait": {"type": "float", "default": 0.0},
    "interval": {"type": "float", "default": 5.0},
    "expect_version": {"type": "str"},
    "check_ports": {"type": "list", "elements": "int", "default": []},
    "kvm_usable": {"type": "bool"},
    "browser_path": {"type": "path"},
}


def read(params: t.Mapping[str, t.Any]) -> _cml_gui.Wanted:
    """Return what is wanted. Raises CmlError for what cannot be meant."""
    try:
        place = parse_place(params["host"], params["port"])
        version = Expectation(params["expect_version"]) if params["expect_version"] else None
    except ValueError as error:
        raise _cml_gui.CmlError(str(error)) from error
    fingerprint = params["fingerprint"] and re.sub(r"[:\s]", "", params["fingerprint"]).lower()
    if fingerprint and not re.fullmatch("[0-9a-f]{64}", fingerprint):
        raise _cml_gui.CmlError("fingerprint is not one of SHA-256: it must have 64 hexadecimal digits")
    if not params["validate_certs"] and (fingerprint or params["ca_path"]):
        raise _cml_gui.CmlError("validate_certs=false contradicts fingerprint and ca_path: give one or the other")
    trust = Trust(params["validate_certs"], params["ca_path"], fingerprint)
    try:
        trust.context()
    except OSError as error:  # also what OpenSSL says of a file without certificates
        raise _cml_gui.CmlError(f"ca_path {params['ca_path']}: {error.strerror or error}") from error
    return _cml_gui.Wanted(
        place=place,
        trust=trust,
        level=params["level"],
        timeout=params["timeout"],
        wait=params["wait"],
        interval=params["interval"],
        username=params["username"],
        password=params["password"],
        version=version,
        ports=params["check_ports"],
        kvm_usable=params["kvm_usable"],
        browser_path=params["browser_path"],
    )
