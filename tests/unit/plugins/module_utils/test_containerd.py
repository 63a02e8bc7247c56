# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of containerd and what is wrong with a configuration."""

from __future__ import annotations

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _containerd

GOOD_2 = """\
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = true
"""
# As `containerd config dump` writes it.
GOOD_3 = """\
disabled_plugins = []
version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = true
"""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+deb13u1", (1, 7, 24)),
        ("containerd github.com/containerd/containerd/v2 v2.2.1 dea7da592f5d1d2b7755e3a161be07f43fad8f75", (2, 2, 1)),
        ("1.36", (1, 36)),
        ("v1.36.2", (1, 36, 2)),
        ("1.6.20~ds1-1+deb12u3", (1, 6, 20)),
        ("Kubernetes v1.36.2", (1, 36, 2)),
        ("nothing", None),
        ("", None),
    ],
)
def test_versions(text: str, version: tuple[int, ...] | None) -> None:
    assert _containerd.parse_version(text) == version


@pytest.mark.parametrize(
    ("daemon", "newest"),
    [((1, 6, 20), 2), ((1, 7, 24), 2), ((2, 0, 0), 3), ((2, 2, 9), 3), ((2, 3, 0), 4), ((2, 10, 0), 4), ((3, 0, 0), 4)],
)
def test_configuration_versions(daemon: tuple[int, ...], newest: int) -> None:
    assert _containerd.newest_config_version(daemon) == newest


@pytest.mark.parametrize(
    ("daemon", "kubernetes", "level"),
    [
        ((1, 7, 24), (1, 34), "passed"),
        ((1, 7, 24), (1, 35), "warning"),
        ((1, 7, 24), (1, 37, 9), "warning"),
        ((1, 7, 24), (1, 38), "error"),
        ((2, 0, 0), (1, 38), "passed"),
    ],
)
def test_containerd_and_kubernetes(daemon: tuple[int, ...], kubernetes: tuple[int, ...], level: str) -> None:
    assert _containerd.judge_version(daemon, kubernetes)[0] == level


@pytest.mark.parametrize(
    ("text", "daemon", "problem"),
    [
        (GOOD_2, (1, 7, 24), ""),
        (GOOD_2, (2, 3, 0), ""),
        (GOOD_3, (2, 0, 0), ""),
        (GOOD_3, (1, 7, 24), "its version is 3, and this containerd reads 2"),
        (GOOD_3.replace("= 3", "= 4"), (2, 2, 0), "its version is 4, and this containerd reads 3"),
        (GOOD_2.replace("version = 2", ""), (1, 7, 24), "no version, or version 1"),
        (GOOD_2.replace("true", "false"), (1, 7, 24), "SystemdCgroup is not true for the runtime runc"),
        (GOOD_2.partition("  [plugins")[0], (1, 7, 24), "SystemdCgroup is not true for the runtime runc"),
        ("version = 2\n", (1, 7, 24), "no runc runtime is configured"),
        ('version = 2\ndisabled_plugins = ["cri"]\n', (1, 7, 24), "CRI plugin is switched off"),
        ("disabled_plugins = ['io.containerd.grpc.v1.cri']\nversion = 2\n", (2, 3, 5), "CRI plugin is switched off"),
        (GOOD_3.replace("[]", "['io.containerd.snapshotter.v1.zfs']"), (2, 0, 0), ""),
    ],
)
def test_problems_of_a_configuration(text: str, daemon: tuple[int, ...], problem: str) -> None:
    problems = _containerd.config_problems(text, daemon)
    assert (problems == []) if not problem else any(problem in each for each in problems)
