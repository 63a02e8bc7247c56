# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: how long the default image takes by both build methods, against the native floor, in the same run.

The floor is what cannot be avoided: mmdebstrap with the same packages, and writing them to a compressed qcow2.
With --packages-from-roles (ten minutes more) also the same image without base.packages: the roles install them then, in
the machine or in the tree.
Nothing else should run meanwhile. Prints JSON and writes it to output/bench.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.goldsmith.images.plugins.module_utils._bootstrap import choose_mirrors, make_recipe

CHECKOUT = Path(__file__).resolve().parents[2]


def timed(
    title: str,
    command: list[str],
    cwd: Path = CHECKOUT,
    environment: dict[str, str] | None = None,
    expected: str = "",
) -> float:
    """Run *command* and return its seconds; it has to fail with the words *expected*, if there are any."""
    print(f"bench: {title} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if (done.returncode != 0) != bool(expected) or expected not in " ".join(done.stdout.split()):
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


@contextlib.contextmanager
def peaks(folder: Path) -> Iterator[dict[str, float]]:
    """Measure how much more disk and memory the host uses at the most while something runs; nothing else may run."""
    found = {"disk_megabytes": 0.0, "memory_megabytes": 0.0}
    ended = threading.Event()

    def free() -> tuple[float, float]:
        memory = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
        return shutil.disk_usage(folder).free / 1e6, int(memory[1]) / 1e3 if memory else 0.0

    disk, memory = free()

    def watch() -> None:
        while not ended.wait(0.5):
            disk_now, memory_now = free()
            found["disk_megabytes"] = round(max(found["disk_megabytes"], disk - disk_now))
            found["memory_megabytes"] = round(max(found["memory_megabytes"], memory - memory_now))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def molecule_create() -> float:
    """Return the seconds until a scenario of Molecule has its machine, once the warm snapshot exists."""
    scenario = ["-s", "node_exporter"]
    timed("molecule, the warm snapshot", ["molecule", "create", *scenario])
    timed("molecule, away with the machine", ["molecule", "destroy", *scenario])
    seconds = timed("molecule, create", ["molecule", "create", *scenario])
    timed("molecule, away with the machine", ["molecule", "destroy", *scenario])
    return seconds


class Checkout:
    """A copy of the checkout in which a role can be changed."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.path = work / "checkout"
        leave = shutil.ignore_patterns(".git", ".venv", ".cache", "output", "tests")
        shutil.copytree(CHECKOUT, self.path, symlinks=True, ignore=leave)
        link = work / "collections/ansible_collections/goldsmith/images"
        link.parent.mkdir(parents=True)
        link.symlink_to(self.path)
        definition = yaml.safe_load((self.path / "playbooks/images/cloud_base.yml").read_text(encoding="utf-8"))
        # Over its budget: the build ends when the image is there, before the verification.
        self.unverified = self.define("unverified", {**definition, "budgets": {"size": "1MB"}})
        base = {**definition["base"], "packages": []}
        self.from_roles = self.define("from_roles", {**definition, "base": base, "budgets": {"size": "1MB"}})

    def define(self, name: str, definition: dict[str, Any]) -> str:
        """Write a definition and return its path."""
        path = self.work / f"{name}.yml"
        path.write_text(yaml.safe_dump(definition), encoding="utf-8")
        return str(path)

    def build(self, title: str, *arguments: str, image: str = "cloud_base", verified: bool = False) -> float:
        """Build and return the seconds."""
        command = ["ansible-playbook", "playbooks/build-image.yml", "-e", f"image={image}"]
        command += ["-e", f"image_output={self.work}/output", "-e", f"image_cache={self.work}/cache", *arguments]
        environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.work / "collections")}
        return timed(
            title, command, cwd=self.path, environment=environment, expected="" if verified else "its budget is"
        )

    def forget(self) -> None:
        """Start the next build from nothing."""
        for name in ("cache", "output"):
            shutil.rmtree(self.work / name, ignore_errors=True)

    def change_a_template(self) -> None:
        """Change what one role writes."""
        [template, *_others] = sorted((self.path / "roles/hardening/templates").glob("*.j2"))
        template.write_text(template.read_text(encoding="utf-8") + "# changed by make bench\n", encoding="utf-8")


def main(packages_from_roles: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="gi-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        work = Path(folder)
        checkout = Checkout(work)
        unverified, from_roles = checkout.unverified, checkout.from_roles
        rootfs_method, vm_method = ("-e", "build_method=rootfs"), ("-e", "build_method=vm")
        with peaks(work) as peak:
            rootfs = checkout.build("rootfs, from nothing, not verified", *rootfs_method, image=unverified)
        checkout.change_a_template()
        changed = checkout.build("rootfs, a template changed", *rootfs_method, image=unverified)
        checkout.forget()
        vm = checkout.build("vm, from nothing, not verified", *vm_method, image=unverified)
        checkout.forget()
        roles_seconds = {}
        for method in ("rootfs", "vm") if packages_from_roles else ():
            arguments = ("-e", f"build_method={method}")
            roles_seconds[method] = checkout.build(f"{method}, packages from the roles", *arguments, image=from_roles)
            checkout.forget()
        whole = checkout.build("as planned, from nothing, verified", verified=True)
        manifest = json.loads((work / "output/cloud_base/manifest.json").read_text(encoding="utf-8"))
        nothing = checkout.build("nothing changed", verified=True)
        # Architecture-dependent names carry it after a colon.
        floor = native_floor([package["name"].partition(":")[0] for package in manifest["packages"]], work)
    create = molecule_create()
    native = sum(floor.values())
    bootstrap = floor["mmdebstrap"]
    result = {
        "host": {"cpus": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release()},
        "versions": manifest["versions"],
        "accelerator": manifest["plan"]["accelerator"]["name"],
        "native_floor": {"seconds": round(native, 1), "steps": {k: round(v, 1) for k, v in floor.items()}},
        "before_verification": {
            "rootfs": {"seconds": round(rootfs, 1), "ratio_to_native_floor": round(rootfs / native, 2), **peak},
            "vm": {"seconds": round(vm, 1), "ratio_to_native_floor": round(vm / native, 2)},
            "vm_to_rootfs": round(vm / rootfs, 2),
            "vm_to_rootfs_without_the_bootstrap_of_both": round((vm - bootstrap) / (rootfs - bootstrap), 2),
            "packages_from_the_roles": roles_seconds
            and {
                **{method: {"seconds": round(seconds, 1)} for method, seconds in roles_seconds.items()},
                "vm_to_rootfs": round(roles_seconds["vm"] / roles_seconds["rootfs"], 2),
            },
            "rootfs_template_changed": {"seconds": round(changed, 1)},
        },
        "from_nothing_verified": {
            "build_method": manifest["plan"]["build_method"]["name"],
            "seconds": round(whole, 1),
            "ratio_to_native_floor": round(whole / native, 2),
            "phases": manifest["phases"],
        },
        "nothing_changed": {"seconds": round(nothing, 1)},
        "molecule_create": {"seconds": round(create, 1)},
        "image_megabytes": round(manifest["image"]["size"] / 1e6, 1),
    }
    text = json.dumps(result, indent=2)
    (CHECKOUT / "output").mkdir(exist_ok=True)
    (CHECKOUT / "output" / "bench.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--packages-from-roles", action="store_true")
    main(parser.parse_args().packages_from_roles)
