# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""net_validate as Ansible runs it: parameters, results, memory, and its documentation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import documented, network
from ansible_collections.goldsmith.images.tests.support.broken_network import SERVER, Net
from ansible_collections.goldsmith.images.tests.support.net_report import NOTHING_LOCAL, one, says
from ansible_collections.goldsmith.images.tests.support.network import Namespace

pytestmark = network.needed

# Modules run in a namespace, and how much memory each needed is written down.
INTERPRETER = """\
#!{python}
import os, resource, subprocess, sys
command = ["nsenter", "--target={pid}", "--net", "--mount", "--", "{python}", *sys.argv[1:]]
done = subprocess.run(command)
with open("{log}", "a") as log:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, file=log)
sys.exit(done.returncode)
"""


def inside(machine: Namespace, folder: Path) -> str:
    """An interpreter for modules that runs them in a namespace."""
    path = folder / "python"
    path.write_text(INTERPRETER.format(python=sys.executable, pid=machine.pid, log=folder / "memory"))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("check", [False, True])
def test_module(net: Net, run_module: Any, tmp_path: Path, check: bool) -> None:
    options = {"tcp": [f"{SERVER}:80", f"{SERVER}:4"], "timeout": 5}
    result = run_module("net_validate", _python=inside(net.client, tmp_path), _check=check, **options)
    assert not result["failed"], result
    documented.check_returned("net_validate", result)
    assert result["changed"] is False
    assert (result["ok"], result["summary"]) == (False, {"pass": 3, "warn": 0, "fail": 1, "skip": 0})


def test_module_fails_if_asked_to(net: Net, run_module: Any, tmp_path: Path) -> None:
    python = inside(net.client, tmp_path)
    options = {"tcp": [f"{SERVER}:4"], "timeout": 5, **NOTHING_LOCAL}
    result = run_module("net_validate", _python=python, fail_on=["fail"], **options)
    documented.check_returned("net_validate", result)
    assert result["failed"]
    assert f"FAIL tcp {SERVER}:4" in result["msg"] and "refused" in result["msg"]
    assert one(result)["hint"] in result["msg"]
    assert not run_module("net_validate", _python=python, fail_on=["warn"], **options)["failed"]


def test_module_stays_small_and_ends_whatever_a_server_does(net: Net, run_module: Any, tmp_path: Path) -> None:
    urls = [{"url": f"http://{SERVER}:{port}/", "expect_body": "never"} for port in (9001, 9002, 9003, 9004, 9005) * 4]
    result = run_module("net_validate", _python=inside(net.client, tmp_path), http=urls, timeout=4, **NOTHING_LOCAL)
    assert result["summary"]["fail"] == 20
    assert result["elapsed_ms"] < 6000
    peaks = [int(line) for line in (tmp_path / "memory").read_text().split()]
    assert 20 < max(peaks) < 100, peaks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"icpm": {"targets": ["a.example"]}}, "icpm"),
        ({"http": [{"url": "http://a.example:99999/"}]}, "http.url: 'http://a.example:99999/' is no URL"),
    ],
)
def test_module_refuses_bad_input(
    net: Net, run_module: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    result = run_module("net_validate", _python=inside(net.island, tmp_path), **options)
    assert result["failed"] and message in result["msg"], result
    assert "checks" not in result


def test_examples(net: Net) -> None:
    # In a machine that has no network: they are taken, and everything is found wrong.
    tasks = [*documented.section("net_validate", "EXAMPLES"), *sum(documented.blocks("net_validate.md"), [])]
    runs = [task["goldsmith.images.net_validate"] or {} for task in tasks if "goldsmith.images.net_validate" in task]
    assert len(runs) >= 6
    for params in runs:
        report = net.island.validate(**{**params, "timeout": 0.5, "retries": 0, "fail_on": []})
        assert not report["ok"], report
        assert "internal" not in [entry["error_class"] for entry in report["checks"]], report


def test_secrets_are_not_in_the_module_s_result(net: Net, run_module: Any, tmp_path: Path) -> None:
    page = {"url": f"http://{SERVER}/hello", "proxy": "http://192.0.2.1:3129"}
    result = run_module(
        "net_validate",
        _python=inside(net.client, tmp_path),
        http=[{**page, "proxy_username": "user", "proxy_password": "secret-word"}],
        **NOTHING_LOCAL,
    )
    assert says(one(result)) == ("pass", None), result
    assert "secret-word" not in str(result)
