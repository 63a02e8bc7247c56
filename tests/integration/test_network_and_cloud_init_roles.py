# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles systemd_networking and cloud_init in a root tree."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
import yaml
from ansible_collections.goldsmith.images.tests.support import root_tree

pytestmark = pytest.mark.skipif(bool(root_tree.missing()), reason=root_tree.missing())
ROLES = ["goldsmith.images.systemd_networking", "goldsmith.images.cloud_init"]


@pytest.mark.parametrize("suite", root_tree.SUITES)
@pytest.mark.slow_matrix
def test_both_roles(
    tmp_path_factory: pytest.TempPathFactory, ansible_env: dict[str, str], tmp_path: Path, suite: str
) -> None:
    tree = root_tree.pristine(tmp_path_factory, suite).copy(tmp_path / "tree")
    settings = {"cloud_init_target": "aws", "cloud_init_network": False, "systemd_networking_dhcp": "ipv4"}
    look = tree.play(ROLES, ansible_env, "--check", **settings)
    assert look.code == 0, look.output
    assert not (tree.path / "etc/systemd/network/90-default.network").exists()

    first = tree.play(ROLES, ansible_env, **settings)
    assert first.code == 0, first.output
    network = configparser.ConfigParser(strict=False)
    network.read(tree.path / "etc/systemd/network/90-default.network")
    assert dict(network["Match"]) == {"type": "ether", "kind": "!*"}
    assert network["Network"]["DHCP"] == "ipv4"
    assert network["DHCPv4"]["RouteMetric"] == network["IPv6AcceptRA"]["RouteMetric"] == "2048"
    units = ["systemd-networkd.service", "systemd-resolved.service"]
    assert tree.run("systemctl", "is-enabled", *units).split() == ["enabled", "enabled"]

    cloud = tree.path / "etc/cloud/cloud.cfg.d"
    assert yaml.safe_load((cloud / "95-goldsmith.cfg").read_text())["datasource_list"] == ["Ec2", "None"]
    assert yaml.safe_load((cloud / "96-no-network.cfg").read_text()) == {"network": {"config": "disabled"}}
    # What cloud-init itself makes of all its files.
    read = 'c = util.read_conf_with_confd("/etc/cloud/cloud.cfg"); print(c["network"], c["system_info"])'
    effective = tree.run("python3", "-c", f"from cloudinit import util; {read}")
    assert "{'config': 'disabled'}" in effective
    assert "'groups': ['adm', 'sudo', 'sudonp']" in effective
    assert "'name': 'debian'" in effective
    assert "sudonp" in tree.run("getent", "group", "sudonp")
    assert (tree.path / "etc/sudoers.d/50-sudonp").stat().st_mode & 0o777 == 0o440

    second = tree.play(ROLES, ansible_env, **settings)
    assert second.code == 0, second.output
    assert second.recap["changed"] == 0, second.output
    back = tree.play(ROLES[1:], ansible_env, cloud_init_sudonp=False)
    assert back.code == 0, back.output
    assert not (cloud / "96-no-network.cfg").exists()
    assert not (tree.path / "etc/sudoers.d/50-sudonp").exists()
