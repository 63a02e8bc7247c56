# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""build_method rootfs: layers, no root, and what is left after a kill.

A budget of 1 MB ends each build before the verification, when the image is there: seconds instead of minutes.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.goldsmith.images.tests.support.processes import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = "playbooks/build-image.yml"
CLOUD_BASE = yaml.safe_load((CHECKOUT / "playbooks/images/cloud_base.yml").read_text())
OVER_BUDGET = "its budget is 1MB"
MINUTES = 600
PHASES = {
    "unpack": "Unpacking the root tree",
    "provision": "Provisioning with Ansible",
    "disk": "Writing the disk",
    "convert": "Converting hard drive",
}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the tests look at processes and mounts of root")


@pytest.fixture(scope="session")
def tree_cache(built: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own that shares the root tree of cloud_base with the default one."""
    cache = tmp_path_factory.mktemp("trees")
    (cache / "base_disks").symlink_to(Path("~/.cache/goldsmith-images/base_disks").expanduser())
    return cache


@pytest.fixture
def tree_build(play, definition, tree_cache: Path, tmp_path: Path) -> Callable[..., Any]:
    """Start a build of a small image on the tree of cloud_base."""

    def start(*arguments: str, **keys: Any) -> Any:
        content = {
            "base": CLOUD_BASE["base"],
            "build_method": "rootfs",
            "roles": ["base_packages"],
            "budgets": {"size": "1MB"},
            **keys,
        }
        path = definition(**content)
        return play(
            BUILD, "-e", f"image={path}", "-e", f"image_output={tmp_path}/output", "-e", f"image_cache={tree_cache}",
            "-e", "kubernetes_packages=distribution", *arguments,
        )  # fmt: skip

    return start


def reports(cache: Path) -> list[dict[str, Any]]:
    """What the builds in the work folders say about their trees, the newest last."""
    paths = sorted(cache.glob("work/*/*/root-tree.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in paths]


def mounts_in(folder: Path) -> list[str]:
    """Mounts below a folder in any mount namespace that a process lives in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        found.update(line.split()[4] for line in lines if line.split()[4].startswith(str(folder)))
    return sorted(found)


def test_a_change_starts_from_the_newest_tree_before_it(tree_build, tree_cache: Path):
    roles = ["base_packages", "container_runtime", "node_exporter"]
    first = tree_build(roles=roles)
    assert first.wait(MINUTES) == 2, first.output
    assert OVER_BUDGET in " ".join(first.output.split()), first.output
    made = reports(tree_cache)[-1]

    second = tree_build(roles=roles, vars={"node_exporter_listen_address": "127.0.0.1:9100"})
    assert second.wait(MINUTES) == 2, second.output
    changed = reports(tree_cache)[-1]
    assert changed["restored"] == roles[:2]
    assert changed["tree_sha256"] != made["tree_sha256"]

    damaged = newest_layer(tree_cache, "tree after the role container_runtime")
    damaged.chmod(0o644)
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    third = tree_build(roles=roles)
    assert third.wait(MINUTES) == 2, third.output
    again = reports(tree_cache)[-1]
    assert again["restored"] == roles[:1], "a layer with a wrong digest is not trusted"
    assert again["tree_sha256"] == made["tree_sha256"], "a tree from layers is the same as one from nothing"
    assert again["disk_digest"] == made["disk_digest"]


def newest_layer(cache: Path, title: str) -> Path:
    entries = [
        path.parent for path in cache.glob("trees/entries/*/entry.json")
        if json.loads(path.read_text())["data"]["title"] == title
    ]  # fmt: skip
    return max(entries, key=lambda path: path.stat().st_mtime) / "changed.tar.zst"


def test_the_cache_is_listed_and_pruned(tree_build, play, tree_cache: Path):
    built = tree_build(roles=["base_packages", "node_exporter"])
    assert built.wait(MINUTES) == 2, built.output
    listed = play("playbooks/image_cache.yml", "-e", f"image_cache={tree_cache}")
    assert listed.wait(60) == 0, listed.output
    assert "root tree of debian trixie" in listed.output
    assert "tree after the role node_exporter" in listed.output
    # Not the base disks, which other tests share.
    copy = tree_cache.parent / "pruned"
    shutil.copytree(tree_cache / "trees", copy / "trees")
    arguments = ("-e", f"image_cache={copy}", "-e", "image_cache_max_size=0", "-e", "image_cache_unused_for=0")
    looked = play("playbooks/image_cache.yml", "--check", *arguments)
    assert looked.wait(60) == 0, looked.output
    assert list((copy / "trees/entries").iterdir())
    pruned = play("playbooks/image_cache.yml", *arguments)
    assert pruned.wait(60) == 0, pruned.output
    assert not list((copy / "trees/entries").iterdir())
    assert "0 entries" in pruned.output


@pytest.mark.slow_matrix
def test_builds_at_the_same_time_share_the_cache(tree_build, tree_cache: Path):
    variables = {"base_packages_extra": ["zip"]}
    builds = [tree_build(name=name, vars=variables) for name in ("one", "two")]
    for each in builds:
        assert each.wait(MINUTES) == 2, each.output
        assert OVER_BUDGET in " ".join(each.output.split()), each.output
    one, two = reports(tree_cache)[-2:]
    assert one["tree_sha256"] == two["tree_sha256"]
    assert not list((tree_cache / "trees/work").iterdir())


# --- without root ---------------------------------------------------------------------------------------------------


def visible_to_others(path: Path, keep: Path) -> str:
    """Shell lines that make a folder below one of root's private folders visible, in a private mount namespace.

    It is mounted on `keep` while the private folder is covered.
    """
    closed = next((p for p in reversed((path, *path.parents)) if not p.stat().st_mode & 0o001), None)
    if closed is None:
        return "true"
    quoted = shlex.quote(str(path))
    return (
        f"mkdir {keep} && mount --rbind {quoted} {keep} && mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed))}"
        f" && mkdir -p {quoted} && mount --rbind {keep} {quoted}"
    )


@pytest.fixture
def unprivileged_home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="gi-rootless-", dir="/var/tmp"))
    shutil.chown(folder, "nobody", "nogroup")
    yield folder
    # Its trees belong to subordinate ids, but root may remove them.
    shutil.rmtree(folder)


def test_without_root(tree_build, play, definition, tree_cache: Path, unprivileged_home: Path):
    roles = ["base_packages", "node_exporter"]
    by_root = tree_build(roles=roles)
    assert by_root.wait(MINUTES) == 2, by_root.output

    home = unprivileged_home
    shutil.copytree(Path("~/.cache/goldsmith-images/base_disks").expanduser(), home / "cache/base_disks")
    path = home / "mine.yml"
    shutil.copy(
        definition(
            base=CLOUD_BASE["base"],
            build_method="rootfs",
            roles=roles,
            budgets={"size": "1MB"},
        ),
        path,
    )
    subprocess.run(["chown", "-R", "nobody:nogroup", str(home)], check=True)
    names = home / "subid"
    names.write_text("nobody:200000:65536\n")
    steps = [f"mount --bind {names} /etc/{name}" for name in ("subuid", "subgid")]
    steps += [visible_to_others(Path(sys.base_prefix), home / "python"), visible_to_others(CHECKOUT, home / "checkout")]
    running = play(
        BUILD, "-e", f"image={path}", "-e", f"image_output={home}/output", "-e", f"image_cache={home}/cache",
        "-e", "kubernetes_packages=distribution",
        # The home of this user in /etc/passwd does not exist.
        environment={"HOME": str(home), "TMPDIR": "/tmp", "USER": "nobody", "ANSIBLE_REMOTE_TEMP": f"{home}/.ansible"},
        mounts="; ".join(steps), user="nobody:nogroup",
    )  # fmt: skip
    assert running.wait(MINUTES) == 2, running.output
    assert OVER_BUDGET in " ".join(running.output.split()), running.output
    [report] = reports(home / "cache")
    assert report["restored"] == []
    assert report["tree_sha256"] == reports(tree_cache)[-1]["tree_sha256"]
    assert report["disk_digest"] == reports(tree_cache)[-1]["disk_digest"]
    [image] = (home / "cache/work").glob("*/*/disk/mine.qcow2")
    assert image.stat().st_uid != 0
    assert not list((home / "cache/trees/work").iterdir())


# --- kill -9 --------------------------------------------------------------------------------------------------------


@pytest.mark.slow_matrix
def test_kill_any_process_at_any_moment(tree_build, processes_with, tree_cache: Path, tmp_path: Path):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    good = tmp_path / "output" / "mine"
    good.mkdir(parents=True)
    (good / "mine.qcow2").write_bytes(b"the last good image")

    start = time.monotonic()
    whole = tree_build()
    assert whole.wait(MINUTES) == 2, whole.output
    seconds = time.monotonic() - start
    for moment in range(20):
        running = tree_build("-e", "image_rebuild=true")
        running.killed_at = chance.uniform(1, seconds)
        time.sleep(running.killed_at)
        kill_one(chance, str(tmp_path))
        running.wait(MINUTES)
        wait_until(lambda: not processes_with(str(tmp_path)), 60, f"the end of all processes (seed {seed}, {moment})")
        assert mounts_in(tree_cache) == [], f"seed {seed}, {moment}"
        assert (good / "mine.qcow2").read_bytes() == b"the last good image"
    last = tree_build("-e", "image_rebuild=true")
    assert last.wait(MINUTES) == 2, last.output
    assert OVER_BUDGET in " ".join(last.output.split()), last.output
    assert not list((tree_cache / "trees/work").iterdir()), "the next build removes what a killed one left"


@pytest.mark.parametrize(
    "phase",
    ["provision", *(pytest.param(name, marks=pytest.mark.slow_matrix) for name in ("unpack", "disk", "convert"))],
)
def test_interrupted_in_each_phase(tree_build, nothing_left, tree_cache: Path, tmp_path: Path, phase: str):
    name = f"interrupted_{phase}"
    good = tmp_path / "output" / name / f"{name}.qcow2"
    good.parent.mkdir(parents=True)
    good.write_bytes(b"the last good image")
    running = tree_build("-e", "image_rebuild=true", name=name)
    running.wait_for(f"{phase} null.image: {PHASES[phase]}", MINUTES)
    running.interrupt()
    assert running.wait(120) != 0
    assert nothing_left(tree_cache / "work")
    assert mounts_in(tree_cache) == []
    assert good.read_bytes() == b"the last good image"
    assert not list(tree_cache.glob(f"work/{name}-*/*/disk/*.qcow2")), "half an image is no image"


def kill_one(chance: random.Random, mark: str) -> None:
    """SIGKILL one of the processes that carry a mark in their environment or command line."""
    numbers = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in text and int(path.name) != os.getpid():
            numbers.append(int(path.name))
    if numbers:
        try:
            os.kill(chance.choice(sorted(numbers)), signal.SIGKILL)
        except ProcessLookupError:
            kill_one(chance, mark)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tied_role(tmp_path: Path) -> dict[str, str]:
    """The environment with a collection whose role needs a running system."""
    role = tmp_path / "collections/ansible_collections/acme/storage/roles/pool"
    (role / "meta").mkdir(parents=True)
    (role / "tasks").mkdir()
    (role / "tasks/main.yml").write_text("---\n[]\n")
    (role / "meta/image_build.yml").write_text("requires_running_system: true\nreason: the kernel makes the pool\n")
    paths = [str(tmp_path / "collections"), str(CHECKOUT / ".venv/collections")]
    return {"ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(paths)}


def test_a_role_that_needs_a_running_system(play, definition, tied_role: dict[str, str], tmp_path: Path):
    path = definition(build_method="rootfs", roles=["acme.storage.pool"])
    refused = play(BUILD, "-e", f"image={path}", "-e", f"image_cache={tmp_path}/cache", environment=tied_role)
    assert refused.wait(120) == 2
    output = " ".join(refused.output.split())
    assert "build_method=rootfs was asked for, but cannot be used" in output, output
    assert "acme.storage.pool (the kernel makes the pool)" in output
    assert not (tmp_path / "cache/base_disks").exists()


def test_a_disk_without_a_root_file_system(play, definition, served_disk, tmp_path: Path):
    boot_sector = b"\0" * 510 + b"\x55\xaa"
    path = definition(base=served_disk(boot_sector + b"\0" * (2**20 - 512)), build_method="rootfs")
    refused = play(
        BUILD, "-e", f"image={path}", "-e", f"image_cache={tmp_path}/cache", "-e", f"image_output={tmp_path}"
    )
    assert refused.wait(120) == 2
    assert "holds an ext4 file system: take build_method 'vm'" in " ".join(refused.output.split()), refused.output


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("mount -t tmpfs -o noexec tmpfs {cache}", "is mounted with noexec or nosuid"),
        ("mount -t tmpfs -o ro tmpfs {cache}", "is not writable"),
        ("mount -t tmpfs -o size=100m tmpfs {cache}", "Too little disk space"),
        # It has nowhere to keep the capabilities of files.
        ("mount -t ramfs ramfs {cache}", "cannot hold a root tree"),
    ],
)
def test_a_cache_that_cannot_hold_a_tree(play, definition, tmp_path: Path, mount: str, message: str):
    cache = tmp_path / "cache"
    cache.mkdir()
    path = definition(build_method="rootfs")
    refused = play(
        BUILD, "-e", f"image={path}", "-e", f"image_cache={cache}", "-e", f"image_output={tmp_path}/output",
        mounts=mount.format(cache=cache),
    )  # fmt: skip
    assert refused.wait(120) == 2
    assert message in " ".join(refused.output.split()), refused.output
    assert not list(cache.iterdir())


def test_a_cache_that_is_not_ours(play, definition, tmp_path: Path):
    cache = tmp_path / "cache"
    (cache / "trees").mkdir(parents=True)
    (cache / "trees/holiday.jpg").write_text("precious")
    path = definition(build_method="rootfs")
    refused = play(BUILD, "-e", f"image={path}", "-e", f"image_cache={cache}", "-e", f"image_output={tmp_path}/output")
    assert refused.wait(120) == 2
    assert "is not a cache of goldsmith.images" in " ".join(refused.output.split()), refused.output
    assert [path.name for path in cache.iterdir()] == ["trees"]
