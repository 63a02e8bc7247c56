# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What differs between a kernel's view (files under tmp_path) and what is wanted."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _kernel_settings as logic


@pytest.fixture
def kernel(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, value in {
        "net/ipv4/ip_forward": "0\n",
        "net/ipv4/ping_group_range": "1\t0\n",
        "net/ipv6/conf/eth0/accept_ra": "1\n",
        "net/ipv6/conf/eth1.100/accept_ra": "2\n",
        "net/ipv6/conf/lo/accept_ra": "1\n",
    }.items():
        path = tmp_path / "proc/sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    (tmp_path / "sys/module/br_netfilter").mkdir(parents=True)
    return tmp_path


def test_only_what_differs(kernel: pathlib.Path) -> None:
    values = {"net.ipv4.ip_forward": 1, "net.ipv4.ping_group_range": "1 0"}
    plan = logic.decide(["br-netfilter", "overlay"], values, str(kernel))
    assert plan.modules == ("overlay",)
    assert plan.values == ((str(kernel / "proc/sys/net/ipv4/ip_forward"), "0", "1"),)
    for path, _old, new in plan.values:
        logic.write(path, new)
    assert logic.decide([], values, str(kernel)) == logic.Plan()


def test_wildcards_and_a_later_entry_wins(kernel: pathlib.Path) -> None:
    values = {
        "-net.ipv6.conf.eth*.accept_ra": 2,
        "-net.ipv6.conf.en*.accept_ra": 2,
        "net/ipv6/conf/eth1.100/accept_ra": 0,
    }
    plan = logic.decide([], values, str(kernel))
    assert [(path.split("/")[-2], new) for path, _old, new in plan.values] == [("eth0", "2"), ("eth1.100", "0")]


def test_a_setting_that_the_kernel_does_not_have(kernel: pathlib.Path) -> None:
    assert logic.decide([], {"net.bridge.x": 1, "-net.bridge.y": 1}, str(kernel)).unknown == ("net.bridge.x",)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.1/x", "net/ipv4/conf/eth0.1/x"),
        ("net.ipv4.conf.eth0/1.x", "net/ipv4/conf/eth0.1/x"),
    ],
)
def test_names(key: str, path: str) -> None:
    assert logic.key_path(key) == f"/proc/sys/{path}"


@pytest.mark.parametrize("key", ["net/../../x", "/../../etc/passwd", ""])
def test_names_do_not_lead_out(key: str) -> None:
    with pytest.raises(logic.KernelSettingsError):
        logic.key_path(key)
