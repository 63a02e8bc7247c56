#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_vm
short_description: Start, stop, snapshot and restore a local virtual machine for tests
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Runs a VM with QEMU from a disk image, by default on an overlay, so that the image itself is never written.
  - The VM has one virtio disk, a user-mode network with the guest's SSH port forwarded to a port of the loopback
    interface, a serial console that goes to a file, a random number generator, and optionally a NoCloud seed.
  - Everything about a VM is in O(runtime_dir). The process is known by its number and its start time. A VM whose
    process has ended is reported in RV(reason), not trusted, and O(state=started) starts it again. A run that was
    killed midway is repaired by the next one.
  - Options that are not given keep what the VM was made with, else they have the default named below.
requirements:
  - QEMU 6.0 or later (qemu-system-x86_64, qemu-img)
  - xorriso, if O(seed) is used
  - the Python library qemu.qmp
  - Python 3.9 or later
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: O(state=snapshot) saves a running VM anew every time.
  platform:
    platforms: linux
options:
  name:
    description: Name of the VM in messages and in the process list. By default the last part of O(runtime_dir).
    type: str
  state:
    description: The wanted state.
    type: str
    choices:
      started: The VM runs. It is made if it does not exist.
      stopped: The VM does not run; its files stay.
      absent: The VM does not run, and the files of this module in O(runtime_dir) are removed. No orderly shutdown.
      snapshot:
        The state of the running VM, memory included, is saved inside its disk as O(snapshot); the VM is then stopped
        unless O(keep_running=true).
    default: started
  runtime_dir:
    description:
      - "Directory of this VM: vm.json (what is known about it), console.log, overlay.qcow2, seed.iso and the monitor's
        socket. Made if missing. Its path may be of any length."
    type: path
    required: true
  image:
    description: Disk image. Needed to make a VM, unless O(warm_from) is given.
    type: path
  image_format:
    description: Format of O(image). By default qcow2 if its first bytes say so, else raw.
    type: str
    choices: [qcow2, raw]
  overlay:
    description: Write into an overlay in O(runtime_dir) instead of into O(image). Default V(true).
    type: bool
  disk_cache:
    description:
      - V(unsafe) ignores the guest's requests to flush its disk, which is faster and costs data only if the host
        crashes. Default V(unsafe) for overlays, else V(writeback).
    type: str
    choices: [writeback, unsafe]
  warm_from:
    description:
      - The O(runtime_dir) of a stopped VM whose overlay is copied (cloned where the file system can) when this VM is
        made. Machine, image and seed are those of the other VM unless given. With O(snapshot) the VM is restored
        instead of booted.
    type: path
  seed:
    description: Content of a NoCloud data source (cloud-init), attached as a CD-ROM with the label cidata.
    type: dict
    suboptions:
      user_data:
        description: The file user-data.
        type: str
      meta_data:
        description: The file meta-data. By default an instance-id that is the VM's name.
        type: str
      network_config:
        description: The file network-config. Without it cloud-init configures the first interface with DHCP.
        type: str
  memory:
    description: Memory in MiB. Default V(2048).
    type: int
  cpus:
    description: Number of virtual CPUs. Default V(2).
    type: int
  accelerator:
    description:
      - Default V(tcg), emulation, which works everywhere. Use M(goldsmith.images.kvm_check) to find out whether V(kvm)
        is of use.
    type: str
    choices: [kvm, tcg]
  cpu_model:
    description:
      - CPU model as QEMU names it. Default V(max). QEMU before 8.0 panics current kernels with V(max) under emulation;
        use V(qemu64) there.
    type: str
  firmware:
    description: Default V(bios).
    type: str
    choices: [bios, uefi]
  ssh_port:
    description:
      - Port of the loopback interface that leads to the guest's port 22. V(0), the default, takes a free one at each
        start, which QEMU and the kernel choose together, so that parallel starts cannot collide.
    type: int
  snapshot:
    description:
      - With O(state=snapshot) the name to save under; an older snapshot of this name is replaced.
      - With O(state=started) the name of a snapshot in the disk that a VM which is not running is restored from.
      - A restored guest's clock stands at the time of the snapshot until somebody sets it. The emulated hardware clock
        shows the host's time, so inside the guest C(date -s @$(cat /sys/class/rtc/rtc0/since_epoch)) is enough.
    type: str
  keep_running:
    description: With O(state=snapshot), let the VM run on.
    type: bool
    default: false
  lifetime:
    description:
      - V(play) ends the VM when the ansible-playbook (or ansible, molecule, ...) that runs this module has ended,
        however it ended, Ctrl-C and SIGKILL included. Over SSH it is the session that counts. V(permanent) is the
        default.
    type: str
    choices: [permanent, play]
  wait_for:
    description:
      - V(ssh) waits for the greeting of the guest's SSH server. Fails early if QEMU ends or the console shows that the
        guest will not come up (kernel panic, emergency mode).
    type: str
    choices: [none, ssh]
    default: none
  timeout:
    description: Seconds that O(wait_for) waits.
    type: int
    default: 600
  stop_timeout:
    description:
      - Seconds that O(state=stopped) waits for the guest to shut down by itself (ACPI) before QEMU is told to quit.
        V(0) quits at once.
    type: int
    default: 60
  extra_args:
    description: Further arguments for QEMU, appended.
    type: list
    elements: str
"""

EXAMPLES = r"""
---
- name: Boot an image without writing to it
  goldsmith.images.qemu_vm:
    state: started
    runtime_dir: /var/tmp/vm
    image: /srv/images/cloud_base.qcow2
    seed:
      user_data: |
        #cloud-config
        ssh_authorized_keys: ["{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"]
    wait_for: ssh
  register: booted

- name: Save the booted state and stop
  goldsmith.images.qemu_vm:
    state: snapshot
    runtime_dir: /var/tmp/vm
    snapshot: warm

- name: Restore the booted state into another VM, within seconds
  goldsmith.images.qemu_vm:
    runtime_dir: /var/tmp/vm2
    warm_from: /var/tmp/vm
    snapshot: warm
    wait_for: ssh

- name: Remove the VMs
  goldsmith.images.qemu_vm:
    state: absent
    runtime_dir: "{{ item }}"
  loop: [/var/tmp/vm, /var/tmp/vm2]
"""

RETURN = r"""
vm:
  description: The VM. What is only known of a running one is null otherwise and in check mode.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: vm
    state:
      description: V(running), V(stopped) or V(absent); in check mode what it would be.
      type: str
      returned: always
      sample: running
    pid:
      description: Number of the QEMU process.
      type: int
      returned: always
      sample: 4711
    ssh_host:
      description: Where the guest's SSH server is reached.
      type: str
      returned: always
      sample: 127.0.0.1
    ssh_port:
      description: The port there.
      type: int
      returned: always
      sample: 41235
    qmp_socket:
      description: QEMU's monitor. One connection at a time.
      type: str
      returned: always
      sample: /var/tmp/vm/qmp.sock
    console_log:
      description: What the guest wrote to its serial console; appended to at each start.
      type: str
      returned: always
      sample: /var/tmp/vm/console.log
    command:
      description: The QEMU command; the names in it are relative to RV(vm.runtime_dir).
      type: list
      elements: str
      returned: always
      sample: [/usr/bin/qemu-system-x86_64, -name, vm]
    runtime_dir:
      description: Directory of the VM.
      type: str
      returned: always
      sample: /var/tmp/vm
    restored_snapshot:
      description: The snapshot that the running VM was restored from.
      type: str
      returned: always
      sample: warm
    snapshots:
      description: Names of the snapshots that were made with this module.
      type: list
      elements: str
      returned: always
      sample: [warm]
reason:
  description: Why something was done or not, in words.
  returned: success
  type: str
  sample: its process 4711 has ended (the guest powered itself off, or QEMU died)
stopped_by:
  description: How the VM was stopped, V(acpi), V(quit) or V(signal).
  returned: success, null if it was not
  type: str
  sample: acpi
ssh_banner:
  description: The greeting of the guest's SSH server.
  returned: success, null unless O(wait_for=ssh)
  type: str
  sample: SSH-2.0-OpenSSH_10.0p2 Debian-7
phase:
  description: In which phase it failed, V(start), V(snapshot) or V(wait_for_ssh).
  returned: on a failure of the VM
  type: str
  sample: wait_for_ssh
console_tail:
  description: The last 50 lines of the console.
  returned: on a failure of the VM
  type: list
  elements: str
command_line:
  description: The QEMU command for a shell.
  returned: on a failure of the VM
  type: str
"""

import contextlib
import os
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_command as qemu
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_qmp, _qemu_wait
from ansible_collections.goldsmith.images.plugins.module_utils._qemu_state import (
    Current,
    Record,
    VmError,
    Wanted,
    decide,
    gather,
)
from ansible_collections.goldsmith.images.plugins.module_utils._qemu_vm import Tools, Vm, locked

SEED_KEYS = ("user_data", "meta_data", "network_config")


def describe(directory: Path, record: Record | None, state: str) -> dict[str, t.Any]:
    running = record is not None and state == "running"
    return {
        "name": record.name if record else directory.name,
        "state": state,
        "pid": record.pid if record else None,
        "ssh_host": "127.0.0.1",
        "ssh_port": record.ssh_port if record and running else None,
        "qmp_socket": str(directory / qemu.QMP_SOCKET),
        "console_log": str(directory / qemu.CONSOLE),
        "command": record.command if record else [],
        "runtime_dir": str(directory),
        "restored_snapshot": record.restored_snapshot if record and running else None,
        "snapshots": sorted(record.snapshots) if record else [],
    }


def state_of(current: Current) -> str:
    if current.record is None:
        return "absent"
    return "running" if current.running else "stopped"


def get_tools(module: AnsibleModule) -> Tools:
    if not _qemu_qmp.HAS_QMP:
        module.fail_json(msg=missing_required_lib("qemu.qmp"), exception=_qemu_qmp.QMP_IMPORT_ERROR)
    found = {}
    for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("qemu-img", "qemu-utils"), ("xorriso", "")):
        path = module.get_bin_path(program)
        needed = module.params["state"] == "started" and (program != "xorriso" or module.params["seed"])
        if path is None and needed:
            module.fail_json(msg=f"{program} is not installed (Debian, Ubuntu: apt install {package or program})")
        found[program] = path or program
    return Tools(qemu=found["qemu-system-x86_64"], qemu_img=found["qemu-img"], xorriso=found["xorriso"])


def read_wanted(params: dict[str, t.Any]) -> Wanted:
    names = set(Wanted.__dataclass_fields__) & set(params)
    given = {name: params[name] for name in names}
    if given["seed"] is not None:
        given["seed"] = {key: given["seed"][key] for key in SEED_KEYS if given["seed"].get(key) is not None}
    if given["image"] is not None:
        given["image"] = os.path.abspath(given["image"])
    return Wanted(**given, warm=params["warm_from"] is not None)


def run(module: AnsibleModule, directory: Path, vm: Vm) -> dict[str, t.Any]:
    params = module.params
    wanted = read_wanted(params)
    warm_from = Path(os.path.abspath(params["warm_from"])) if params["warm_from"] else None
    make = params["state"] == "started" and not module.check_mode and not directory.is_dir()
    if make:
        try:
            directory.mkdir(mode=0o700, parents=True)
        except OSError as exc:
            raise VmError(f"cannot make {directory}: {exc.strerror}") from exc
    os.umask(0o077)  # a seed, a log or the memory in a snapshot may hold secrets
    try:
        with locked(directory) if directory.is_dir() else contextlib.nullcontext():
            current = gather(directory)
            plan = decide(current, wanted)
            record = vm.prepare(current, plan, wanted, warm_from)
            before = state_of(current)
            after = {"started": "running", "stopped": "stopped", "absent": "absent"}.get(params["state"], "stopped")
            if params["state"] == "snapshot" and params["keep_running"]:
                after = "running"
            if params["state"] == "stopped" and current.record is None:
                after = "absent"
            if not module.check_mode:
                record = vm.apply(current, plan, record, wanted, warm_from)
    finally:
        if make:
            with contextlib.suppress(OSError):
                directory.rmdir()  # only if it stayed empty
    result: dict[str, t.Any] = {
        "changed": plan.changed,
        "reason": plan.reason,
        "vm": describe(directory, None if after == "absent" else record, after),
        "stopped_by": vm.stopped_by,
        "ssh_banner": None,
    }
    if module._diff:
        result["diff"] = {"before": {"state": before}, "after": {"state": after}}
    if params["wait_for"] == "ssh" and params["state"] == "started" and not module.check_mode:
        result["ssh_banner"] = wait_for_ssh(vm, directory, params["timeout"], result)
    return result


def wait_for_ssh(vm: Vm, directory: Path, timeout: float, result: dict[str, t.Any]) -> str:
    current = gather(directory)
    record, process = current.record, current.process
    if record is None or process is None or record.ssh_port is None:
        evidence = vm.evidence(record) if record else {}
        raise VmError("the VM ended right after its start", **evidence, phase="wait_for_ssh")
    console = directory / qemu.CONSOLE
    try:
        return _qemu_wait.wait_for_ssh(process, record.ssh_port, console, record.console_offset, timeout)
    except _qemu_wait.NoAnswer as exc:
        raise VmError(f"{record.name}: {exc}", **vm.evidence(record), phase="wait_for_ssh", **result) from exc


def fail(module: AnsibleModule, error: VmError) -> t.NoReturn:
    message = str(error)
    details = error.details
    if details.get("command_line"):
        tail = "\n".join(details["console_tail"]) or "(nothing)"
        message += f"\nQEMU: {details['command_line']}\nThe last lines of the console:\n{tail}"
    details.pop("command", None)
    module.fail_json(msg=message, **{"changed": False, **details})


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "state": {
                "type": "str",
                "choices": ["started", "stopped", "absent", "snapshot"],
                "default": "started",
            },
            "runtime_dir": {"type": "path", "required": True},
            "image": {"type": "path"},
            "image_format": {"type": "str", "choices": ["qcow2", "raw"]},
            "overlay": {"type": "bool"},
            "disk_cache": {"type": "str", "choices": ["writeback", "unsafe"]},
            "warm_from": {"type": "path"},
            "seed": {"type": "dict", "options": {key: {"type": "str"} for key in SEED_KEYS}},
            "memory": {"type": "int"},
            "cpus": {"type": "int"},
            "accelerator": {"type": "str", "choices": ["kvm", "tcg"]},
            "cpu_model": {"type": "str"},
            "firmware": {"type": "str", "choices": ["bios", "uefi"]},
            "ssh_port": {"type": "int"},
            "snapshot": {"type": "str"},
            "keep_running": {"type": "bool", "default": False},
            "lifetime": {"type": "str", "choices": ["permanent", "play"]},
            "wait_for": {"type": "str", "choices": ["none", "ssh"], "default": "none"},
            "timeout": {"type": "int", "default": 600},
            "stop_timeout": {"type": "int", "default": 60},
            "extra_args": {"type": "list", "elements": "str"},
        },
        required_if=[("state", "snapshot", ["snapshot"])],
        supports_check_mode=True,
    )
    directory = Path(os.path.abspath(module.params["runtime_dir"]))
    vm = Vm(directory, get_tools(module), stop_timeout=module.params["stop_timeout"])
    try:
        result = run(module, directory, vm)
    except VmError as exc:
        fail(module, exc)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
