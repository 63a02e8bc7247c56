# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node exporter runs and serves its metrics."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from gather import gather, properties

if TYPE_CHECKING:
    from testinfra.host import Host

GATHER = r"""
section unit; systemctl show --property=ActiveState,UnitFileState,NRestarts,User prometheus-node-exporter.service
section metrics; python3 -c '
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=20) as answer:
    print("status", answer.status)
    print(answer.read().decode())
' "$1" 2>&1
section failed; systemctl list-units --failed --plain --no-legend --no-pager 'prometheus-node-exporter*'
"""


@pytest.fixture(scope="module")
def exporter(host: Host, expect: dict[str, Any]) -> dict[str, str]:
    """What the machine says of its node exporter."""
    return gather(host, GATHER, str(expect.get("node_exporter_url", "http://127.0.0.1:9100/metrics")))


@pytest.mark.reboot
def test_node_exporter_is_enabled_and_runs(exporter: dict[str, str]) -> None:
    unit = properties(exporter["unit"])
    assert (unit["UnitFileState"], unit["ActiveState"], unit["NRestarts"]) == ("enabled", "active", "0")


def test_node_exporter_is_not_root(exporter: dict[str, str]) -> None:
    assert properties(exporter["unit"])["User"] not in ("", "root")


@pytest.mark.reboot
def test_metrics_are_served(exporter: dict[str, str]) -> None:
    status, _newline, body = exporter["metrics"].partition("\n")
    assert status == "status 200", exporter["metrics"][:500]
    names = set(re.findall(r"^(\w+)[{ ]", body, flags=re.MULTILINE))
    assert {"node_cpu_seconds_total", "node_memory_MemTotal_bytes", "node_filesystem_size_bytes"} <= names
    assert re.search(r"^node_memory_MemTotal_bytes [1-9]", body, flags=re.MULTILINE)


@pytest.mark.reboot
def test_no_collector_fails(exporter: dict[str, str]) -> None:
    assert exporter["failed"] == ""
    body = exporter["metrics"]
    assert re.search(r'^node_scrape_collector_success\{collector="cpu"\} 1$', body, flags=re.MULTILINE)
    assert "node_textfile_scrape_error 0" in body
