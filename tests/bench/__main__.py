# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: how long the default image takes from nothing, against the native floor, measured in the same run.

The floor is what cannot be avoided: mmdebstrap with the same packages, and writing them to a compressed qcow2.
Prints JSON and writes it to output/bench.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ansible_collections.goldsmith.images.plugins.module_utils._bootstrap import choose_mirrors, make_recipe

CHECKOUT = Path(__file__).resolve().parents[2]


def timed(title: str, command: list[str]) -> float:
    """Run *command* and return its seconds; its output is shown only if it fails."""
    print(f"bench: {title} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    done = subprocess.run(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench: {title} failed: {' '.join(command)}\n{done.stdout[-8000:]}{done.stderr[-4000:]}")
    seconds = time.monotonic() - start
    print(f"bench: {title}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return seconds


def native_floor(packages: list[str], work: Path) -> dict[str, float]:
    """Return the seconds of each step that any way of making this image has to take."""
    recipe = make_recipe("debian", "trixie", packages, ["main"], choose_mirrors(None, None))
    archive, tree, disk, image = work / "floor.tar", work / "floor", work / "floor.raw", work / "floor.qcow2"
    mmdebstrap = ["mmdebstrap", "--variant=apt", '--aptopt=APT::Install-Recommends "false"']
    mmdebstrap += [f"--keyring={recipe.keyring}", f"--include={','.join(recipe.packages)}", "trixie", str(archive)]
    seconds = {"mmdebstrap": timed("floor: mmdebstrap", [*mmdebstrap, *recipe.sources()])}
    tree.mkdir()
    unpack = [
        "tar",
        "--extract",
        "--numeric-owner",
        "--exclude=./dev/*",
        "--file",
        str(archive),
        "--directory",
        str(tree),
    ]
    seconds["unpack"] = timed("floor: unpack", unpack)
    with disk.open("wb") as handle:
        handle.truncate(10 * 1024**3)
    seconds["file system"] = timed("floor: file system", ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(disk)])
    convert = ["qemu-img", "convert", "-c", "-m", "8", "-W", "-O", "qcow2", "-o", "compression_type=zstd"]
    seconds["qcow2"] = timed("floor: qcow2", [*convert, str(disk), str(image)])
    return seconds


def build(work: Path) -> tuple[dict[str, Any], float, float]:
    """Build the default image from nothing, then once more; return manifest and both durations in seconds."""
    command = ["ansible-playbook", "playbooks/build-image.yml", "-e", "image=cloud_base"]
    command += ["-e", f"image_output={work}/output", "-e", f"image_cache={work}/cache"]
    first = timed("build from nothing", command)
    second = timed("build with nothing changed", command)
    return json.loads((work / "output/cloud_base/manifest.json").read_text()), first, second


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="gi-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        work = Path(folder)
        manifest, first, second = build(work)
        # Architecture-dependent names carry it after a colon.
        floor = native_floor([package["name"].partition(":")[0] for package in manifest["packages"]], work)
    result = {
        "host": {"cpus": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release()},
        "versions": manifest["versions"],
        "accelerator": manifest["plan"]["accelerator"]["name"],
        "build_from_nothing": {"seconds": round(first, 1), "phases": manifest["phases"]},
        "nothing_changed": {"seconds": round(second, 1)},
        "native_floor": {"seconds": round(sum(floor.values()), 1), "steps": {k: round(v, 1) for k, v in floor.items()}},
        "ratio_to_native_floor": round(first / sum(floor.values()), 2),
        "image_megabytes": round(manifest["image"]["size"] / 1e6, 1),
    }
    text = json.dumps(result, indent=2)
    (CHECKOUT / "output").mkdir(exist_ok=True)
    (CHECKOUT / "output" / "bench.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
