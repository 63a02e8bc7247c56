# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Find every way in which a Debian or Ubuntu system comes by swap, and close it."""

from __future__ import annotations

import dataclasses
import os
import typing as t

COMMENT = "# switched off, this machine runs without swap: "
# No unit that brings up swap is started without swap.target: not those that systemd makes of fstab, of swap partitions
# that it discovers on a GPT disk, nor those of the zram generator.
TARGET = "swap.target"
# These bring their own service and call swapon themselves.
SERVICES = (
    "dphys-swapfile.service",
    "swapspace.service",
    "systemd-zram-setup@.service",
    "zram-config.service",
    "zramswap.service",
)
GENERATORS = ("zram-generator",)
VENDOR_FOLDERS = ("usr/lib/systemd/system", "lib/systemd/system", "usr/local/lib/systemd/system")
ADMIN_FOLDER = "etc/systemd/system"
GENERATOR_FOLDER = "etc/systemd/system-generators"


class SwapOffError(Exception):
    """Swap cannot be switched off."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What has to be done; paths as the system sees them."""

    fstab_before: str = ""
    fstab_after: str = ""
    masks: tuple[str, ...] = ()
    unlinks: tuple[str, ...] = ()
    swapoff: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.written or self.swapoff)

    @property
    def written(self) -> bool:
        return bool(self.fstab_before != self.fstab_after or self.masks or self.unlinks)


def clean_fstab(text: str) -> str:
    """Comment out the entries of type swap."""
    lines = []
    for line in text.splitlines(keepends=True):
        fields = line.split()
        is_swap = len(fields) >= 3 and not fields[0].startswith("#") and fields[2] == "swap"
        lines.append(COMMENT + line if is_swap else line)
    return "".join(lines)


def swaps_in_use(text: str) -> tuple[str, ...]:
    """The devices and files of /proc/swaps; the kernel writes a blank in a name as \\040."""
    lines = text.splitlines()[1:]
    names = [line.split()[0] for line in lines if line.strip()]
    return tuple(name.replace("\\040", " ") for name in names)


def is_mask(path: str) -> bool:
    return os.path.islink(path) and os.readlink(path) == os.devnull


def swap_units(root: str) -> list[str]:
    """The names of all .swap unit files that a package or the administrator has brought."""
    names: set[str] = set()
    for folder in (*VENDOR_FOLDERS, ADMIN_FOLDER):
        path = os.path.join(root, folder)
        if os.path.isdir(path):
            names.update(name for name in os.listdir(path) if name.endswith(".swap"))
    return sorted(names)


def enablement_links(root: str, unit: str) -> list[str]:
    """The links in .wants and .requires that start a unit at boot, as paths below the root."""
    folder = os.path.join(root, ADMIN_FOLDER)
    found = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        link = os.path.join(folder, name, unit)
        if name.endswith((".wants", ".requires")) and os.path.lexists(link):
            found.append(f"/{ADMIN_FOLDER}/{name}/{unit}")
    return found


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def decide(offline: bool, root: str = "/") -> Plan:
    """Look at everything; nothing is touched."""
    fstab = read(os.path.join(root, "etc/fstab"))
    masks: list[str] = []
    unlinks: list[str] = []
    for unit in (TARGET, *SERVICES, *swap_units(root)):
        path = os.path.join(root, ADMIN_FOLDER, unit)
        if is_mask(path):
            continue
        if not os.path.lexists(path):
            masks.append(f"/{ADMIN_FOLDER}/{unit}")
        elif unit == TARGET:
            raise SwapOffError(f"/{ADMIN_FOLDER}/{TARGET} is a file of its own; remove it first")
        else:
            # The administrator's own unit file is not thrown away, and a file in this folder cannot be masked.
            unlinks.extend(enablement_links(root, unit))
    for generator in GENERATORS:
        if not is_mask(os.path.join(root, GENERATOR_FOLDER, generator)):
            masks.append(f"/{GENERATOR_FOLDER}/{generator}")
    return Plan(
        fstab_before=fstab,
        fstab_after=clean_fstab(fstab),
        masks=tuple(masks),
        unlinks=tuple(unlinks),
        # In a root tree that is not booted /proc belongs to the machine that works on it.
        swapoff=() if offline else swaps_in_use(read("/proc/swaps")),
    )


def apply_links(plan: Plan, root: str = "/") -> None:
    """Set the masks and take the enablement links away."""
    for path in plan.masks:
        real = os.path.join(root, path[1:])
        os.makedirs(os.path.dirname(real), mode=0o755, exist_ok=True)
        beside = f"{real}.goldsmith-{os.getpid()}"
        os.symlink(os.devnull, beside)
        os.rename(beside, real)
    for path in plan.unlinks:
        os.unlink(os.path.join(root, path[1:]))


def diff_of(plan: Plan) -> list[dict[str, t.Any]]:
    result: list[dict[str, t.Any]] = []
    if plan.fstab_before != plan.fstab_after:
        result.append(
            {
                "before_header": "/etc/fstab",
                "after_header": "/etc/fstab",
                "before": plan.fstab_before,
                "after": plan.fstab_after,
            }
        )
    before = [f"{name}: in use" for name in plan.swapoff] + [f"{path}: a link" for path in plan.unlinks]
    after = [f"{path}: masked" for path in plan.masks]
    if before or after:
        result.append({"before": "".join(f"{x}\n" for x in before), "after": "".join(f"{x}\n" for x in after)})
    return result
