# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Kernel modules and sysctl values: what is loaded and in effect now, compared with what is wanted."""

from __future__ import annotations

import dataclasses
import glob
import os
import typing as t


class KernelSettingsError(Exception):
    """The kernel does not take what was asked for."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The modules to load, and for each file below /proc/sys its old and new value."""

    modules: tuple[str, ...] = ()
    values: tuple[tuple[str, str, str], ...] = ()
    # Keys that the kernel does not have (yet: a module may bring them).
    unknown: tuple[str, ...] = ()


def normal(value: str) -> str:
    """The kernel separates several numbers with tabs."""
    return " ".join(value.split())


def key_path(key: str, root: str = "/proc/sys") -> str:
    """As sysctl reads names: the first separator decides, and the other of the two then stands for itself."""
    first = min((key.find(char) for char in "./" if char in key), default=-1)
    if first >= 0 and key[first] == ".":
        key = key.translate(str.maketrans("./", "/."))
    path = os.path.normpath(os.path.join(root, key.lstrip("/")))
    if not path.startswith(f"{root}/"):
        raise KernelSettingsError(f"{key}: not the name of a kernel setting")
    return path


def loaded(module: str, root: str = "/") -> bool:
    """Loaded or built in; the kernel writes a dash as an underscore."""
    return os.path.isdir(os.path.join(root, "sys/module", module.replace("-", "_")))


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as stream:
        return normal(stream.read())


def decide(modules: t.Sequence[str], values: t.Mapping[str, t.Any], root: str = "/") -> Plan:
    """Look and compare; nothing is touched. A key may have the wildcards * and ?."""
    changes: dict[str, tuple[str, str]] = {}
    unknown = []
    for key, wanted in values.items():
        optional = key.startswith("-")
        path = key_path(key.lstrip("-"), os.path.join(root, "proc/sys"))
        paths = sorted(glob.glob(path))
        if not paths and not optional:
            unknown.append(key)
        for each in paths:
            changes[each] = (read(each), normal(str(wanted)))
    return Plan(
        modules=tuple(module for module in modules if not loaded(module, root)),
        values=tuple((path, old, new) for path, (old, new) in changes.items() if old != new),
        unknown=tuple(unknown),
    )


def write(path: str, value: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(f"{value}\n")
    except OSError as error:
        raise KernelSettingsError(f"{path}: the kernel refuses {value!r}: {error.strerror}") from error
