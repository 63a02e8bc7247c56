# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a disk image, read without booting it: paths, types, modes, owners, contents, links."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

MOUNT = 'mount -o ro,noload,loop,offset="$1" "$2" "$3"; shift 3; exec "$@"'


def read(image: Path) -> dict[str, str]:
    """Return path -> description for everything in the root file system of a disk image; needs root."""
    return dict(json.loads(_mounted(image, sys.executable, __file__)))


def read_file(image: Path, path: str) -> str:
    """Return the text of one file in a disk image; needs root."""
    return _mounted(image, "sh", "-ec", 'cat "$1/$0"', path)


def _mounted(image: Path, *command: str) -> str:
    """Run a command with the folder where the root file system is mounted as its last argument."""
    with tempfile.TemporaryDirectory(prefix="gi-disk-", dir="/var/tmp") as folder:
        raw, place = Path(folder, "disk.raw"), Path(folder, "root")
        place.mkdir()
        subprocess.run(["qemu-img", "convert", "-O", "raw", "-W", str(image), str(raw)], check=True)
        table = json.loads(subprocess.run(["sfdisk", "--json", str(raw)], check=True, capture_output=True).stdout)
        [root] = [part for part in table["partitiontable"]["partitions"] if part.get("name") == "root"]
        enter = ["unshare", "--mount", "sh", "-ec", MOUNT, "sh", str(root["start"] * 512), str(raw), str(place)]
        return subprocess.run([*enter, *command, str(place)], check=True, capture_output=True, text=True).stdout


def describe(path: Path) -> str:
    """Return type, mode, owner and content of one file, folder or link in words that can be compared and read."""
    status = path.lstat()
    words = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    names = os.listxattr(path, follow_symlinks=False)
    words += "".join(f" {name}={os.getxattr(path, name, follow_symlinks=False).hex()}" for name in sorted(names))
    if stat.S_ISLNK(status.st_mode):
        return f"{words} -> {os.readlink(path)}"
    if stat.S_ISREG(status.st_mode):
        return f"{words} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return words


def main(root: Path) -> None:
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path.relative_to(root))] = describe(path)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
