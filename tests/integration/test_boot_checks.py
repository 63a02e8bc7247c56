# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role boot_checks on a Debian that is not booted, and its program there, where there is no Ansible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.tests.support import root_tree

pytestmark = pytest.mark.skipif(bool(root_tree.missing()), reason=root_tree.missing())

ROLE = "goldsmith.images.boot_checks"
HOME = "usr/lib/goldsmith-images"
UNIT = "goldsmith-boot-checks.service"


@pytest.mark.slow_matrix  # five plays; the scenario of Molecule sees the role on a machine that boots
def test_boot_checks(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, ansible_env: dict[str, str]) -> None:
    tree = root_tree.pristine(tmp_path_factory).copy(tmp_path / "tree")
    network = {"interfaces": [], "default_route": False, "tcp": ["127.0.0.1:1"], "timeout": 3}
    variables = {
        "boot_checks_network": network,
        "boot_checks_checks": ["network", "kvm"],
        "boot_checks_kvm_level": "api",
    }

    first_look = tree.play([ROLE], ansible_env, "--check", **variables)
    assert first_look.code == 0, first_look.output
    assert not (tree.path / HOME).exists()

    first = tree.play([ROLE], ansible_env, **variables)
    assert first.code == 0, first.output
    assert tree.run("systemctl", "is-enabled", UNIT).strip() == "enabled"
    # With what starts it: a cycle in the order would be told here.
    # What else is wrong with a tree as small as this one is not its affair.
    tree.run("sh", "-c", f"systemd-analyze verify multi-user.target {UNIT} >/tmp/said 2>&1 || :")
    said = (tree.path / "tmp/said").read_text()
    assert UNIT not in said and "cycle" not in said, said

    second = tree.play([ROLE], ansible_env, **variables)
    assert (second.code, second.recap["changed"]) == (0, 0), second.output

    # What it needs has come along: there is no Ansible in the tree.
    tree.run(f"/{HOME}/boot-checks", check=False)
    log = (tree.path / "var/log/network_validation.log").read_text()
    report = json.loads(log.splitlines()[-1])
    assert [entry["name"] for entry in report["checks"]] == ["kvm", "tcp"]
    assert report["checks"][1]["error_class"] == "refused"
    assert "-> The host is up" in log
    assert not list((tree.path / HOME).rglob("__pycache__"))

    refused = tree.play([ROLE], ansible_env, **{**variables, "boot_checks_network": {"tcp": ["example.org"]}})
    assert refused.code != 0
    assert "'example.org' has no port" in " ".join(refused.output.split())
    kept = json.loads((tree.path / "etc/goldsmith-images/boot_checks.json").read_text())
    assert kept["network"] == network
