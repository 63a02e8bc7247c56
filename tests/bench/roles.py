# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-roles`: what the roles of the default image cost, and how soon the image is up.

In a machine of Molecule's, once on a base disk with nothing of what the roles install and once as the image is built,
with the packages in place: tasks and seconds of each role, first and second run. Then the same changes by one plain
shell script through Packer's shell provisioner, in another machine of the same state. The script is written from what
the roles have done: the packages, files and units that they report; afterwards both machines are compared, and a
difference is an error. What the roles also look at and prove is not in the script.

Last, first boots to the first login over SSH: the image against its base disk, in turns.
Nothing else should run meanwhile. Prints JSON and writes it to output/bench-roles.json; exit status 1 if a figure
misses its target.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import io
import json
import shlex
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.goldsmith.images.tests.bench import first_boot
from ansible_collections.goldsmith.images.tests.bench.machine import CHECKOUT, Machine, environment, machine, note, run

DEFINITION = yaml.safe_load((CHECKOUT / "playbooks/images/cloud_base.yml").read_text(encoding="utf-8"))
TO_REACH = {"ratio_to_script": 1.6, "first_boot_ratio_to_base_disk": 0.75}
#: What a build's plan decides, where no other repository answers.
VARIABLES = {**DEFINITION["vars"], "kubernetes_prerequisites_packages_source": "distribution"}
STARTS = {"packages_from_the_roles": {"MOLECULE_PACKAGES": "roles"}, "packages_in_place": {}}
SCENARIO = "base_packages"
#: Done by Ansible itself, not in the machine.
ON_THE_CONTROLLER = ("validate_argument_spec", "include_role", "include_tasks", "include_vars", "assert", "set_fact")
#: The order in which a script calls systemctl.
VERBS = ("mask", "unmask", "disable", "enable", "daemon-reload", "start", "restart", "reload-or-restart", "reload")

SCRIPT = """\
#!/bin/sh
set -eu
umask 022
export DEBIAN_FRONTEND=noninteractive
{apt}
getent group sudonp >/dev/null || groupadd --system sudonp
{files}
swapoff --all
systemctl mask --quiet swap.target
modprobe --all overlay br_netfilter
{commands}
"""
TEMPLATE = """\
source "null" "vm" {{
  communicator         = "ssh"
  ssh_host             = "{host}"
  ssh_port             = {port}
  ssh_username         = "{user}"
  ssh_private_key_file = "{key}"
}}
build {{
  sources = ["source.null.vm"]
  provisioner "shell" {{
    script          = "script.sh"
    execute_command = "sudo sh {{{{ .Path }}}}"
  }}
}}
"""
# Everything that the roles or the script may have changed; paths on standard input.
STATE = r"""
dpkg-query --show
systemctl list-unit-files --state=enabled,masked --plain --no-legend | awk '{ print $1, $2 }'
for unit in $1; do echo "$unit $(systemctl is-active "$unit")"; done
getent group sudonp
ls -d /sys/module/overlay /sys/module/br_netfilter
tail -n +2 /proc/swaps
while read -r path; do
    if [ -e "$path" ] || [ -L "$path" ]; then stat --format='%N %a %U %G' "$path"; fi
    if [ -f "$path" ]; then sha256sum "$path"; fi
done
sed -nE 's/^-?([a-z][^ =]+) *=.*/\1/p' /etc/sysctl.d/60-goldsmith-hardening.conf /etc/sysctl.d/zz-kubernetes.conf |
    sort -u | xargs sysctl
"""
PACK = r"""
while read -r path; do if [ -e "$path" ] || [ -L "$path" ]; then echo "$path"; fi; done |
    tar --create --gzip --no-recursion --absolute-names --files-from=- | base64 --wrap=0
"""


def results(plays: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What each task that ran has returned."""
    for play in plays:
        for task in play["tasks"]:
            yield from (found for found in task["hosts"].values() if not found.get("skipped"))


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.removesuffix("Z"))


def costs(plays: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tasks in the machine and seconds of each play; those of tasks that were skipped or ran elsewhere are in it."""
    found = {}
    for play in plays:
        duration = play["play"]["duration"]
        seconds = (moment(duration["end"]) - moment(duration["start"])).total_seconds()
        ran = [each for each in results([play]) if each["action"].rpartition(".")[2] not in ON_THE_CONTROLLER]
        found[play["play"]["name"]] = {
            "tasks": len(ran),
            "changed": sum(bool(result.get("changed")) for result in ran),
            "seconds": round(seconds, 1),
            "seconds_per_task": round(seconds / max(1, len(ran)), 2),
        }
    return found


def changed_paths(plays: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(path for result in results(plays) for path in result.get("changed_paths", [])))


def systemctl(plays: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The units of each verb that the roles have called systemctl with."""
    found: dict[str, list[str]] = {}
    for result in results(plays):
        for verb, *words in result.get("commands", []) if "changed_units" in result else []:
            if verb not in VERBS:
                sys.exit(f"bench: no script can do yet what a role does: systemctl {verb}")
            units = found.setdefault(verb, [])
            units += [word for word in words if not word.startswith("-") and word not in units]
    # Started again is started.
    found["start"] = [unit for unit in found.get("start", []) if unit not in found.get("restart", [])]
    return {verb: units for verb, units in found.items() if units or verb == "daemon-reload"}


def file_lines(archive: tarfile.TarFile) -> Iterator[str]:
    """A script's lines that make the files, links and folders of an archive."""
    members = archive.getmembers()
    folders = {str(Path(member.name).parent) for member in members if not member.isdir()}
    yield shlex.join(["mkdir", "-p", *sorted(folders)])
    for member in members:
        path = shlex.quote(member.name)
        if member.isdir():
            yield f"mkdir -p {path} && chmod {member.mode:04o} {path}"
        elif member.issym():
            yield f"ln -sfn {shlex.quote(member.linkname)} {path}"
        else:
            stream = archive.extractfile(member)
            content = stream.read().decode() if stream else ""
            if content.endswith("\n"):
                yield f"cat >{path} <<'END_OF_FILE'\n{content}END_OF_FILE"
            else:
                yield f"printf %s {shlex.quote(content)} >{path}"
            if member.mode != 0o644:
                yield f"chmod {member.mode:04o} {path}"


def write_script(vm: Machine, plays: list[dict[str, Any]], packages: list[str]) -> str:
    """A plain script that does what these plays have done to this machine."""
    packed = vm.ssh(f"sudo sh -c {shlex.quote(PACK)}", text="\n".join(changed_paths(plays)))
    apt = "apt-get -qq update\n" + shlex.join(["apt-get", "-qq", "install", "--no-install-recommends", *packages])
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed))) as archive:
        files = "\n".join(file_lines(archive))
    units = systemctl(plays)
    commands = [shlex.join(["systemctl", "--quiet", verb, *units[verb]]) for verb in VERBS if verb in units]
    commands += [
        shlex.join(result["cmd"])
        for result in results(plays)
        if result["action"] == "ansible.builtin.command" and result.get("changed") and "cmd" in result
    ]
    return SCRIPT.format(apt=apt if packages else "", files=files, commands="\n".join(commands))


def state(vm: Machine, plays: list[dict[str, Any]]) -> list[str]:
    units = " ".join(sorted({unit for verb, names in systemctl(plays).items() if "start" in verb for unit in names}))
    command = f"sudo sh -c {shlex.quote(STATE)} sh {shlex.quote(units)}"
    return vm.ssh(command, text="\n".join(changed_paths(plays))).splitlines()


def run_script(vm: Machine, script: str) -> float:
    """The seconds of a Packer build that runs the script in the machine."""
    way = dict(
        line.split(" ", 1)
        for line in run(["ssh", "-G", "-F", str(vm.work / "ssh_config"), "vm"], environment(vm.work)).splitlines()
    )
    folder = vm.work / "packer"
    folder.mkdir()
    (folder / "script.sh").write_text(script, encoding="utf-8")
    template = TEMPLATE.format(host=way["hostname"], port=way["port"], user=way["user"], key=way["identityfile"])
    (folder / "script.pkr.hcl").write_text(template, encoding="utf-8")
    start = time.monotonic()
    run(["packer", "build", "-color=false", "."], {**environment(vm.work), "CHECKPOINT_DISABLE": "1"}, folder)
    return time.monotonic() - start


def compare(name: str, roles: list[str], keep: Path) -> dict[str, Any]:
    """The roles in one machine, the script in another."""
    with machine(SCENARIO, **STARTS[name]) as vm:
        before = vm.ssh("apt-mark showmanual").split()
        note(f"{name}: applying the roles")
        start = time.monotonic()
        plays = vm.play(roles, **VARIABLES)
        whole = time.monotonic() - start
        packages = sorted(set(vm.ssh("apt-mark showmanual").split()) - set(before))
        script = write_script(vm, plays, packages)
        wanted = state(vm, plays)
        note(f"{name}: applying them again")
        again = vm.play(roles, **VARIABLES)
        note(f"{name}: cleaning up")
        cleanup = [costs(vm.play(["cleanup"]))["cleanup"] for _run in range(2)]
    keep.joinpath(f"bench-roles-{name}.sh").write_text(script, encoding="utf-8")
    with machine(SCENARIO, **STARTS[name]) as vm:
        note(f"{name}: running the script")
        seconds = run_script(vm, script)
        differences = sorted(set(wanted) ^ set(state(vm, plays)))
    if differences:
        sys.exit(f"bench: {name}: the script has not done the same as the roles:\n" + "\n".join(differences))
    first, second = costs(plays), costs(again)
    total = sum(found["seconds"] for found in first.values())
    return {
        "roles": {
            role: {"first": first[role], "second": second[role]} for role in first
        } | {"cleanup": {"first": cleanup[0], "second": cleanup[1]}},
        "packages": len(packages),
        "sum_seconds": round(total, 1),
        "with_start_of_ansible_seconds": round(whole, 1),
        "second_run_seconds": round(sum(found["seconds"] for found in second.values()), 1),
        "script_seconds": round(seconds, 1),
        "ratio_to_script": round(total / seconds, 2),
    }  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    output = CHECKOUT / "output"
    output.mkdir(exist_ok=True)
    found: dict[str, Any] = {"to_reach": TO_REACH}
    missed = []
    if not arguments.without_roles:
        found["roles"] = {name: compare(name, DEFINITION["roles"], output) for name in arguments.start or STARTS}
        ratios = {name: each["ratio_to_script"] for name, each in found["roles"].items()}
        missed += [f"{name}: {ratio}" for name, ratio in ratios.items() if ratio > TO_REACH["ratio_to_script"]]
    if not arguments.without_boots:
        with tempfile.TemporaryDirectory(prefix="gi-boot-") as folder:
            found["first_boot"] = first_boot.measure(arguments.image, DEFINITION, Path(folder))
        ratio = found["first_boot"]["ratio_to_base_disk"]
        missed += [f"first boot: {ratio}"] if ratio > TO_REACH["first_boot_ratio_to_base_disk"] else []
    text = json.dumps(found, indent=2)
    (output / "bench-roles.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    if missed:
        sys.exit(f"bench: missed: {', '.join(missed)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench-roles", description=__doc__)
    parser.add_argument("--start", action="append", choices=STARTS, help="only from this state of the base disk")
    parser.add_argument("--without-roles", action="store_true")
    parser.add_argument("--without-boots", action="store_true")
    parser.add_argument("--image", type=Path, help="a finished cloud_base; by default it is built, if it is not there")
    main(parser.parse_args())
