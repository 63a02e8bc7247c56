# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What has to be known of containerd's versions, and the few settings of its configuration that Kubernetes needs."""

from __future__ import annotations

import re
import typing as t

# Daemon version, and the newest configuration version that it reads.
CONFIG_VERSIONS = (((2, 3), 4), ((2, 0), 3), ((0,), 2))
# The kubelet asks the runtime for its cgroup driver (RuntimeConfig, since containerd 2.0). It does without an answer,
# kubeadm warns from 1.35 on, and 1.38 takes the fallback away.
WARN_OF_1_X, REFUSE_1_X = (1, 35), (1, 38)


def parse_version(text: str) -> tuple[int, ...] | None:
    """The first version number in a text, such as that of `containerd --version` or of a package (1.7.24~ds1-6)."""
    found = re.search(r"(?:^|[\sv:])(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part is not None) if found else None


def newest_config_version(daemon: tuple[int, ...]) -> int:
    return next(version for since, version in CONFIG_VERSIONS if daemon >= since)


def config_values(text: str) -> t.Iterator[tuple[str, str, str]]:
    """Section, key and raw value of each line `key = value`: enough of TOML here, and Python 3.9 has no parser."""
    section = ""
    for line in text.splitlines():
        line = line.strip()
        header = re.fullmatch(r"\[([^\[\]]+)\]\s*(?:#.*)?", line)
        value = re.match(r"([\w-]+)\s*=\s*(.*)", line)
        if header:
            section = header[1].replace("'", "").replace('"', "")
        elif value:
            yield section, value[1], value[2].strip()


def config_problems(text: str, daemon: tuple[int, ...]) -> list[str]:
    """What in a configuration (a file, or the effective one that `containerd config dump` prints) breaks a node."""
    problems = []
    version = 1
    drivers: dict[str, bool] = {}
    for section, key, value in config_values(text):
        if (section, key) == ("", "version"):
            version = int(re.sub(r"\D", "", value) or 1)
        elif (section, key) == ("", "disabled_plugins") and re.search(
            r"""["'](io\.containerd\.[\w.]*)?cri["'.]""", value
        ):
            problems.append("the CRI plugin is switched off (disabled_plugins)")
        elif key == "runtime_type" and "io.containerd.runc." in value:
            drivers.setdefault(section, False)
        elif key == "SystemdCgroup" and section.endswith(".options"):
            drivers[section[: -len(".options")]] = value.startswith("true")
    newest = newest_config_version(daemon)
    if version > newest:
        problems.append(f"its version is {version}, and this containerd reads {newest} at the most")
    elif version < 2:
        problems.append("it has no version, or version 1, which puts the CRI settings where they are not read")
    if not drivers:
        problems.append("no runc runtime is configured, so the cgroup driver is cgroupfs (SystemdCgroup)")
    problems += [
        f"SystemdCgroup is not true for the runtime {section.rpartition('.')[2]}"
        for section, systemd in sorted(drivers.items())
        if not systemd
    ]
    return problems


def judge_version(daemon: tuple[int, ...], kubernetes: tuple[int, ...]) -> tuple[str, str]:
    """Level and message for a containerd under a Kubernetes minor version."""
    names = f"containerd {'.'.join(map(str, daemon))}", f"Kubernetes {'.'.join(map(str, kubernetes[:2]))}"
    if daemon >= (2,) or kubernetes < WARN_OF_1_X:
        return "passed", f"{names[0]} and {names[1]} go together"
    if kubernetes >= REFUSE_1_X:
        return (
            "error",
            f"{names[1]} does not work with {names[0]}: from 1.38 on the kubelet needs containerd 2.0 or later",
        )
    return "warning", f"{names[0]} works with {names[1]}; from 1.38 on the kubelet needs containerd 2.0 or later"
