# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take MAC addresses of another machine out of NetworkManager's profiles, before NetworkManager starts.

CML's set-up pins the MAC address of the machine it runs on, and a DHCP client id made of it, in the profile of bridge0.
In a copy of that machine the cloud drops the frames of the bridge: no DHCP, and no way in. An address that an interface
of this machine has is left alone, so that a pin somebody wants stays.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
import tempfile
from pathlib import Path

# A client id is a type and then the address.
ADDRESS = re.compile(r"(?:[0-9a-f]{2}:)?((?:[0-9a-f]{2}:){5}[0-9a-f]{2})")
# In which section, and which key.
PINS = {
    "bridge": ("mac-address",),
    "ethernet": ("mac-address", "cloned-mac-address"),
    "802-3-ethernet": ("mac-address", "cloned-mac-address"),
    "ipv4": ("dhcp-client-id",),
}


def own_addresses(root: Path) -> set[str]:
    found = set()
    for path in root.glob("sys/class/net/*/address"):
        try:
            found.add(path.read_text(encoding="ascii").strip().lower())
        except OSError:
            continue
    return found


def unpin(path: Path, own: set[str]) -> list[str]:
    """The keys that were removed."""
    profile = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    profile.optionxform = str  # type: ignore[assignment,method-assign]
    profile.read_string(path.read_text(encoding="utf-8"))
    removed = []
    for section, keys in PINS.items():
        for key in keys:
            value = profile.get(section, key, fallback="").lower()
            pinned = ADDRESS.fullmatch(value)
            if pinned and pinned[1] not in own:
                profile.remove_option(section, key)
                removed.append(f"{section}.{key} ({value})")
    if removed:
        _replace(path, profile)
    return removed


def _replace(path: Path, profile: configparser.RawConfigParser) -> None:
    # NetworkManager ignores a profile that others can read.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".unpin-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        profile.write(file, space_around_delimiters=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


def main(root: Path = Path("/")) -> int:
    own = own_addresses(root)
    code = 0
    for path in sorted(root.glob("etc/NetworkManager/system-connections/*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            removed = unpin(path, own)
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            print(f"{path}: cannot be read: {error}", file=sys.stderr)
            code = 1
            continue
        for text in removed:
            print(f"{path}: removed {text}: no interface of this machine has it")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("/")))
