# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Everything about a build that depends on the outside, decided once and before anything is built."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._cache import file_digest

SCHEMA = 1
MIB = 1024**2
GIB = 1024**3
# Generous shares of what the default image takes (measured: base disk 1.1 GiB, build 1.6 GiB, both overlays 0.5 GiB).
CACHE_SPACE = 6 * GIB
OUTPUT_SPACE = 2 * GIB
EC2_SPACE = 64 * MIB  # logs and a manifest
HOST_MEMORY = 512  # MiB left to the host beside the guests

# program -> Debian package
EC2_PROGRAMS = {
    "packer": "packer",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ansible-playbook": "",
}
PROGRAMS = {
    **EC2_PROGRAMS,
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "xorriso": "xorriso",
}
BOOTSTRAP_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "zstd": "zstd",
}
ROLE_REFERENCE = re.compile(r"goldsmith\.images\.([a-z_]+)")


class PlanError(Exception):
    """The image cannot be built here; every line of the text is one reason."""


@dataclass(frozen=True)
class Accelerator:
    """How the guests run, and why."""

    name: str  # kvm or tcg
    cpu_model: str
    reason: str


def missing_programs(programs: t.Mapping[str, str], path: str) -> list[str]:
    """Return one line for each program of *programs* that is not on *path*, with the apt line that brings it."""
    missing = {name: package for name, package in programs.items() if shutil.which(name, path=path) is None}
    packages = sorted({package for package in missing.values() if package})
    lines = [f"{name} is not installed or not on PATH." for name in missing]
    if packages:
        lines.append(f"Install with: apt-get install {' '.join(packages)}")
    return lines


def choose_accelerator(wanted: str, kvm: t.Mapping[str, t.Any], qemu_version: tuple[int, ...]) -> Accelerator:
    """Decide between KVM and software emulation.

    *wanted* is auto, kvm or tcg; *kvm* what kvm_check returned. PlanError when KVM is demanded and does not work.
    """
    if wanted == "kvm" and not kvm.get("usable"):
        reason = kvm.get("hint") or kvm.get("reason")
        raise PlanError(f"accelerator=kvm was asked for, but KVM cannot be used: {reason}")
    if wanted == "kvm" or (wanted == "auto" and kvm.get("accelerated")):
        return Accelerator("kvm", "host", "asked for" if wanted == "kvm" else "KVM with hardware support")
    # QEMU 7.2's emulation of newer CPUs panics Linux 6.12 (double fault around cmpxchg16b).
    cpu_model = "max" if qemu_version >= (8,) else "qemu64"
    if wanted == "tcg":
        reason = "asked for"
    elif kvm.get("usable"):
        reason = f"/dev/kvm is there but emulates in software ({kvm.get('backend', 'unknown backend')})"
    else:
        reason = f"no KVM ({kvm.get('reason', 'unknown')})"
    return Accelerator("tcg", cpu_model, reason)


def nested_kvm_problems(kvm: t.Mapping[str, t.Any], accelerator: Accelerator, allowed: bool) -> list[str]:
    """Return a line when the machine being built could not run VMs itself, so that nobody could see that they work."""
    if allowed:
        return []
    if accelerator.name != "kvm" or not kvm.get("accelerated"):
        reason = f"no accelerated KVM here ({accelerator.reason}). {kvm.get('hint') or ''}".rstrip()
    elif kvm.get("nested_param") is False:
        reason = "its KVM does not let guests use KVM (nested=0): load kvm_intel or kvm_amd with nested=1."
    else:
        return []
    return [
        f"The definition needs_kvm, and a machine on this host cannot run VMs: {reason} "
        "Build on another host, or allow it with -e image_allow_no_kvm=true: nobody has then seen KVM work in it."
    ]


@dataclass(frozen=True)
class BuildMethod:
    """How roles are applied, and why."""

    name: str  # vm or rootfs
    reason: str


def choose_build_method(
    wanted: str,
    accelerator: Accelerator,
    base: t.Mapping[str, t.Any],
    running_system_roles: t.Mapping[str, str],
    tree_problem: t.Callable[[], str],
) -> BuildMethod:
    """Decide between a machine and a root tree.

    *wanted* is auto, vm or rootfs; *running_system_roles* maps roles that cannot work on a tree to why;
    *tree_problem* says why no tree can be built here. PlanError when what is demanded is impossible, or both are.
    """
    machine_problem = ""
    if base["method"] == "bootstrap" and base.get("release") == "bookworm":
        machine_problem = "Debian 12's kernel for clouds cannot read the CD that Packer gives the first account on"
    if wanted == "vm" and machine_problem:
        raise PlanError(f"build_method=vm was asked for, but cannot be used: {machine_problem}; rootfs can")
    if wanted == "vm":
        return BuildMethod("vm", "asked for")
    if wanted == "auto" and accelerator.name == "kvm" and not machine_problem:
        return BuildMethod("vm", "with KVM a machine is as fast and closer to what will boot")
    problem = ""
    if base["method"] != "bootstrap" and "distribution" not in base and wanted == "auto":
        problem = "the base is a disk of which base.distribution does not say what it holds"
    elif base["method"] != "bootstrap" and os.geteuid() != 0:
        problem = "the base is a disk, and only root can read the tree on it"
    elif running_system_roles:
        roles = "; ".join(f"{role} ({why})" for role, why in running_system_roles.items())
        problem = f"not every role can work without a running system: {roles}"
    else:
        problem = tree_problem()
    if not problem:
        why = "asked for" if wanted == "rootfs" else machine_problem or "no accelerated KVM, and a tree needs none"
        return BuildMethod("rootfs", why)
    if wanted == "rootfs":
        raise PlanError(f"build_method=rootfs was asked for, but cannot be used: {problem}")
    if machine_problem:
        raise PlanError(f"no build_method can be used: {machine_problem}, and for a root tree {problem}")
    return BuildMethod("vm", problem)


def role_digests(collection: Path, role: str) -> dict[str, str]:
    """Return the digests of a role and of all roles of this collection that its files name; none if it is foreign."""
    found: dict[str, str] = {}
    waiting = [role.removeprefix("goldsmith.images.")]
    while waiting:
        name = waiting.pop()
        folder = collection / "roles" / name
        if name in found or not folder.is_dir():
            continue
        found[name] = tree_digest(folder)
        for path in folder.rglob("*.yml"):
            waiting += ROLE_REFERENCE.findall(path.read_text(encoding="utf-8"))
    return found


def layers(
    roles: t.Sequence[str], role_vars: t.Mapping[str, t.Any], collection: Path, outside: t.Mapping[str, str]
) -> list[dict[str, str]]:
    """Return for each role what stands for all that decides about what it does, apart from the tree it finds.

    A variable whose name begins with that of another role of the image is that role's own, unless this one uses it.
    """
    result = []
    names = [role.rpartition(".")[2] for role in roles]
    common = {
        "plugins": tree_digest(collection / "plugins"),
        "provision.yml": file_digest(collection / "playbooks" / "provision.yml"),
        "apply_role.yml": file_digest(collection / "playbooks" / "tasks" / "apply_role.yml"),
        **outside,
    }
    for role, name in zip(roles, names):
        digests = role_digests(collection, role)
        others = tuple(f"{other}_" for other in names if other not in (name, *digests))
        variables = {key: value for key, value in role_vars.items() if not key.startswith(others)}
        result.append({"role": role, "digest": value_digest([digests, variables, common]) if digests else ""})
    return result


def space_problems(folders: t.Mapping[str, tuple[Path, int]]) -> list[str]:
    """Return one line for each folder that cannot be written to or has too little room.

    *folders* maps what the folder is for to (folder, needed bytes); needs on one file system add up.
    """
    problems: list[str] = []
    needed: dict[int, int] = {}
    free: dict[int, tuple[int, str]] = {}
    for purpose, (folder, size) in folders.items():
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            problems.append(f"The {purpose} {folder} is not writable for {_user()} (checked {existing}).")
            continue
        device = existing.stat().st_dev
        needed[device] = needed.get(device, 0) + size
        free[device] = (shutil.disk_usage(existing).free, str(existing))
    for device, size in needed.items():
        available, where = free[device]
        if available < size:
            sizes = f"{size / GIB:.1f} GiB needed, {available / GIB:.1f} found"
            problems.append(f"Too little disk space in {where}: {sizes}.")
    return problems


def memory_problems(guest_memory: int, guests: int, available: int | None) -> list[str]:
    """Return a line when *guests* guests of *guest_memory* MiB do not fit into *available* bytes (None: unknown)."""
    needed = guest_memory * guests + HOST_MEMORY
    if available is None or available // MIB >= needed:
        return []
    return [
        f"Too little memory: {needed} MiB needed ({guests} guests of {guest_memory}), {available // MIB} MiB available."
    ]


def tree_digest(folder: Path) -> str:
    """Return one sha256 over the names and contents of all files below *folder*, independent of order and dates."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_mode & 0o111:o}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def value_digest(value: t.Any) -> str:
    """Return the sha256 of *value* as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def image_inputs(
    definition: t.Mapping[str, t.Any], collection: Path, outside: t.Mapping[str, str], archive: t.Sequence[str]
) -> dict[str, str]:
    """Return all that makes the image what it is, as flat name -> digest or value: the fingerprint's pre-image."""
    inputs = {f"definition {key}": value_digest(value) for key, value in definition.items() if key != "description"}
    of_a_disk = [] if definition["builder"] == "amazon-ebs" else ["base_disk", "verify_image"]
    for role in [*definition["roles"], "cleanup", "packer", *of_a_disk]:
        folder = collection / "roles" / role.removeprefix("goldsmith.images.")
        inputs[f"role {role}"] = tree_digest(folder) if folder.is_dir() else "not part of this collection"
    inputs["collection plugins"] = tree_digest(collection / "plugins")
    for name in ("provision.yml", "tasks/apply_role.yml"):
        inputs[f"playbook {name}"] = file_digest(collection / "playbooks" / name)
    inputs.update(outside)
    inputs.update({f"archive {url}": digest for url, digest in (line.rsplit(" ", 1) for line in archive)})
    return inputs


def build_fingerprint(inputs: t.Mapping[str, str]) -> str:
    """Return the digest of those inputs that go into the image: a failed check is repeated without another build."""
    judging = {"role verify_image", "definition checks", "definition budgets"}
    return value_digest({name: value for name, value in inputs.items() if name not in judging})


def why_build(inputs: t.Mapping[str, str], image: Path, manifest: Path) -> list[str]:
    """Return the reasons why the image has to be built; empty when the finished one is what would be built."""
    last, reasons = _last_build(
        inputs, manifest, lambda last: (last["image"]["sha256"], last["verification"]["passed"])
    )
    if last is None:
        return reasons
    digest, passed = last
    if not passed:
        reasons.append("the last image did not pass its verification")
    if not image.is_file():
        reasons.append(f"{image} is gone")
    elif not reasons and file_digest(image) != digest:
        reasons.append(f"{image} was altered after the build")
    return reasons


def why_build_ami(
    inputs: t.Mapping[str, str], region: str, manifest: Path, problem: t.Callable[[str], str]
) -> list[str]:
    """Return the reasons why an AMI has to be built; *problem* says why an earlier one cannot be taken."""
    image_id, reasons = _last_build(inputs, manifest, lambda last: last["amis"][region]["image_id"])
    if image_id is not None and not reasons:
        reasons += filter(None, [problem(image_id)])
    return reasons


def _last_build(
    inputs: t.Mapping[str, str], manifest: Path, read: t.Callable[[t.Any], t.Any]
) -> tuple[t.Any, list[str]]:
    """Return what *read* finds in the manifest of the last build, and what has changed since; None if it is no use."""
    try:
        last = json.loads(manifest.read_text(encoding="utf-8"))
        last_inputs, found = last["inputs"], read(last)
    except FileNotFoundError:
        return None, ["there is no finished image yet"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, [f"{manifest} cannot be read"]
    if last.get("schema") != SCHEMA:
        return None, ["the last build is of another version of goldsmith.images"]
    changed = sorted(name for name in {*inputs, *last_inputs} if inputs.get(name) != last_inputs.get(name))
    return found, [f"changed: {name}" for name in changed]


def _user() -> str:
    return f"user {os.environ.get('USER', os.geteuid())}"
