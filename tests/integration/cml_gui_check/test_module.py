# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _cml_spec
from ansible_collections.goldsmith.images.plugins.module_utils._cml_gui import CmlError
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.cml_controller import (
    PASSWORD,
    TOKEN,
    USER,
    Site,
    health,
    information,
)


@pytest.mark.parametrize("check_mode", [False, True])
def test_module(run_module, site: Site, check_mode: bool) -> None:
    environment = {"CML_HOST": site.url(), "CML_USERNAME": USER, "CML_PASSWORD": PASSWORD}
    result = run_module("cml_gui_check", _check=check_mode, _env=environment, level="health", ca_path=site.ca_path)
    documented.check_returned("cml_gui_check", result)
    assert not result["failed"], result.get("msg")
    assert (result["changed"], result["ok"], result["state"]) == (False, True, "ok")


def test_module_fails_with_problem_and_hint_and_without_secrets(run_module, site: Site) -> None:
    # What the server sends repeats password and token.
    site.controller.replies["system_information"] = information(version=f"{PASSWORD} {TOKEN}", ready=True)
    site.controller.replies["system_health"] = health({"hostname": f"{PASSWORD}/{TOKEN}", "fabric": False})
    result = run_module(
        "cml_gui_check",
        _env={"ANSIBLE_VERBOSITY": "4"},
        host="localhost",
        port=site.ports["good"],
        fingerprint=":".join(site.certificates["good"].fingerprint[i : i + 2].upper() for i in range(0, 64, 2)),
        username=USER,
        password=PASSWORD,
        level="health",
        fail=True,
    )
    documented.check_returned("cml_gui_check", result)
    assert result["failed"] and result["hint"] in result["msg"]
    assert "fabric" in result["msg"]
    text = json.dumps(result)
    assert PASSWORD not in text and TOKEN not in text


def test_oldest_python_of_a_target(run_module, site: Site) -> None:
    pythons = [shutil.which("python3.9"), *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9"))]
    working = [p for p in pythons if p and subprocess.run([p, "-V"], capture_output=True, check=False).returncode == 0]
    if not working:
        pytest.skip("there is no Python 3.9 here")
    for name, level in (("good", "health"), ("all_wrong", "health")):
        result = run_module(
            "cml_gui_check",
            _python=working[0],
            host=site.url(name),
            ca_path=site.ca_path,
            username=USER,
            password=PASSWORD,
            level=level,
        )
        documented.check_returned("cml_gui_check", result)
        assert result["state"] == ("ok" if name == "good" else "tls_error"), result
        assert len(result["certificate"]["problems"]) == (0 if name == "good" else 3)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "host"),
        ({"host": "https://user:secret-word@cml.example.com"}, "give username and password as options"),
        ({"host": "ftp://cml.example.com"}, "not a server's address"),
        ({"host": "cml.example.com/lab"}, "not a server's address"),
        ({"host": "cml.example.com:99999"}, "cml.example.com:99999"),
        ({"host": "cml.example.com:443", "port": 8443}, "contradict"),
        ({"host": "cml.example.com", "port": 0}, "not a port"),
        ({"host": "h", "level": "everything"}, "tcp"),
        ({"host": "h", "level": "auth"}, "CML_PASSWORD"),
        ({"host": "h", "level": "web", "expect_version": "2.9"}, "contradicts level web"),
        ({"host": "h", "expect_version": ">=2.10,<2.9"}, "contradict"),
        ({"host": "h", "expect_version": "new"}, "not a version"),
        ({"host": "h", "validate_certs": False, "fingerprint": "0" * 64}, "contradicts"),
        ({"host": "h", "fingerprint": "00:11"}, "64 hexadecimal digits"),
        ({"host": "h", "ca_path": "/no/such/file"}, "/no/such/file"),
        ({"host": "h", "ca_path": "/dev/null"}, "/dev/null"),
        ({"host": "h", "timeout": 0}, "timeout"),
        ({"host": "h", "check_ports": [70000]}, "70000"),
    ],
)
def test_bad_input(run_module, params: dict[str, Any], text: str) -> None:
    # One Ansible run costs a second, so only a few go all the way.
    if text in ("host", "tcp"):
        result = run_module("cml_gui_check", **params)
        assert result["failed"] and text in result["msg"]
        return
    defaults = dict.fromkeys(
        ("port", "expect_version", "fingerprint", "ca_path", "username", "password", "kvm_usable", "browser_path")
    )
    rest = {"level": "ready", "timeout": 15.0, "wait": 0.0, "interval": 5.0, "check_ports": [], "validate_certs": True}
    with pytest.raises(CmlError) as error:
        _cml_spec.read({**defaults, **rest, **params})
    assert text in str(error.value)
    assert "secret-word" not in str(error.value)
