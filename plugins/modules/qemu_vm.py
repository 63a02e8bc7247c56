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
  - The VM has virtio disks, a user-mode network with the guest's SSH port forwarded to a port of the loopback
    interface, a serial console that goes to a file, a random number generator, and optionally a NoCloud seed.
  - A host that has too little memory or room on its disk is refused before anything is started.
  - Everything about a VM is in O(runtime_dir). The process is known by its number and its start time. A VM whose
    process has ended is reported in RV(reason), not trusted, and O(state=started) starts it again. A run that was
    killed midway is repaired by the next one.
  - Options that are not given keep what the VM was made with, else they have the default named below.
requirements:
  - QEMU 6.0 or later (qemu-system-x86_64, qemu-img)
  - xorriso, if O(seed) is used
  - the OpenSSH client, if O(ssh_user) is used
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
        The state of the running VM, memory included, is saved inside its disk (with O(template) beside it) as
        O(snapshot); the VM is then stopped unless O(keep_running=true).
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
  disks:
    description:
      - Further disks, up to 9; the guest finds them as C(/dev/disk/by-id/virtio-disk1) and so on. They live in
        O(runtime_dir); an image is never written, the disk is an overlay on it. Snapshots contain them.
    type: list
    elements: dict
    suboptions:
      size:
        description: Size of an empty disk, with a suffix (K, M, G, T), such as V(10G).
        type: str
      image:
        description: Disk image to begin with, instead of O(disks[].size).
        type: path
      image_format:
        description: As O(image_format).
        type: str
        choices: [qcow2, raw]
  template:
    description:
      - Keep the guest's memory in a file of O(runtime_dir), so that VMs restored from this one's snapshot
        (O(warm_from)) need not copy it. They begin at once and share what they do not change.
      - A template ends with its snapshot and is not restored itself. If it is started again, its snapshot is gone.
        Default V(false).
    type: bool
  warm_from:
    description:
      - The O(runtime_dir) of a stopped VM whose overlay is copied (cloned where the file system can) when this VM is
        made. Machine, image and seed are those of the other VM unless given. With O(snapshot) the VM is restored
        instead of booted. One that was restored from a O(template) and is restored again begins anew, disks included.
    type: path
  seed:
    description: Content of a NoCloud data source (cloud-init), attached as a read-only disk with the label cidata.
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
  machine:
    description: Machine type as QEMU names it, such as V(q35) or V(pc). Default V(q35).
    type: str
  memory:
    description: Memory in MiB. Default V(2048).
    type: int
  cpus:
    description: Number of virtual CPUs. Default V(2).
    type: int
  accelerator:
    description:
      - How the guest's processor is run. What M(goldsmith.images.kvm_check) finds decides, unless V(kvm), V(tcg) or
        V(forbid) is given.
      - Without this option a new VM is made with V(prefer).
    type: str
    choices:
      prefer: KVM if it is accelerated, else TCG. A VM that runs already is left as it is.
      require: KVM, or an error if it is not accelerated.
      forbid: TCG, QEMU's own emulation, which works everywhere.
      kvm: KVM without a check, for those who have made one.
      tcg: The same as V(forbid).
  cpu_model:
    description:
      - CPU model as QEMU names it. Default V(max), but V(qemu64) where QEMU before 8.0 emulates, because its V(max)
        panics current kernels.
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
  port_forwards:
    description: Further ports of the loopback interface that lead to ports of the guest.
    type: list
    elements: dict
    suboptions:
      guest_port:
        description: The port of the guest.
        type: int
        required: true
      host_port:
        description: The port of the loopback interface; V(0) takes a free one at each start, see RV(vm.port_forwards).
        type: int
        default: 0
      protocol:
        description: The protocol.
        type: str
        choices: [tcp, udp]
        default: tcp
  snapshot:
    description:
      - With O(state=snapshot) the name to save under; an older snapshot of this name is replaced.
      - With O(state=started) the name of a snapshot in the disk that a VM which is not running is restored from.
      - A restored guest's clock stands at the time of the snapshot until somebody sets it. With O(ssh_user) this module
        does. Inside the guest C(date -s @$(cat /sys/class/rtc/rtc0/since_epoch)) is enough, because the emulated
        hardware clock shows the host's time.
    type: str
  ssh_user:
    description:
      - An account of the guest, V(root) or one that may use sudo without a password. With it, the clock of a guest that
        was restored from O(snapshot) is set. A run that cannot do so fails, and the next one tries again.
    type: str
  ssh_private_key_file:
    description: Private key for O(ssh_user). By default those that ssh finds by itself.
    type: path
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
      - Fails early if QEMU ends or the console shows that the guest will not come up (kernel panic, emergency mode).
    type: str
    choices:
      none: Nothing.
      ssh: The greeting of the guest's SSH server.
      cloud_init:
        The last message of cloud-init on the serial console (C(console=ttyS0), and no C(final_message) of one's own).
        Not for a restored VM, which does not boot.
    default: none
  timeout:
    description: Seconds that O(wait_for) waits, and that a restored guest has to let its clock be set.
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
    template: true
    seed:
      user_data: |
        #cloud-config
        ssh_authorized_keys: ["{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"]
    disks:
      - size: 1G
    port_forwards:
      - guest_port: 80
    wait_for: cloud_init
  register: booted

- name: Show how to reach it
  ansible.builtin.debug:
    msg: "ssh -p {{ booted.vm.ssh_port }} debian@{{ booted.vm.ssh_host }}"

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
    ssh_user: debian
    ssh_private_key_file: ~/.ssh/id_ed25519

- name: Shut it down
  goldsmith.images.qemu_vm:
    state: stopped
    runtime_dir: /var/tmp/vm2

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
    port_forwards:
      description: The ports of O(port_forwards), those that QEMU took included.
      type: list
      elements: dict
      returned: always
      sample: [{guest_port: 80, host_port: 41236, protocol: tcp}]
      contains:
        guest_port:
          description: The port of the guest.
          type: int
          returned: always
          sample: 80
        host_port:
          description: The port of the loopback interface.
          type: int
          returned: always
          sample: 41236
        protocol:
          description: V(tcp) or V(udp).
          type: str
          returned: always
          sample: tcp
    accelerator:
      description: V(kvm) or V(tcg).
      type: str
      returned: always
      sample: tcg
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
cloud_init:
  description: The message that cloud-init ended with.
  returned: success, null unless O(wait_for=cloud_init)
  type: str
  sample: Cloud-init v. 25.1.4 finished at Sat, 21 Nov 2026 19:41:22 +0000. Up 100.93 seconds
clock_set:
  description: Whether the guest's clock was set, because it was restored and O(ssh_user) is given.
  returned: success
  type: bool
  sample: false
phase:
  description:
    - In which phase it failed, V(start), V(resume), V(snapshot), V(wait_for_ssh), V(wait_for_cloud_init) or
      V(set_clock).
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
screenshot:
  description: A picture of the guest's screen (PNG), on the machine that the module ran on.
  returned: on a failure of the VM, null if QEMU has ended, hangs, or is older than 7.1
  type: str
  sample: /var/tmp/vm/screenshot.png
"""

import contextlib
import os
import re
import typing as t
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_command as qemu
from ansible_collections.goldsmith.images.plugins.module_utils import _qemu_host, _qemu_qmp, _qemu_wait
from ansible_collections.goldsmith.images.plugins.module_utils._qemu_state import (
    Current,
    Disk,
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
        "port_forwards": [asdict(one) for one in record.forwards] if record and running else [],
        "accelerator": record.machine.accelerator if record else None,
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
    for program, package, option in (
        ("qemu-system-x86_64", "qemu-system-x86", "state"),
        ("qemu-img", "qemu-utils", "state"),
        ("xorriso", "xorriso", "seed"),
        ("ssh", "openssh-client", "ssh_user"),
    ):
        path = module.get_bin_path(program)
        if path is None and module.params["state"] == "started" and module.params[option]:
            module.fail_json(msg=f"{program} is not installed (Debian, Ubuntu: apt install {package})")
        found[program] = path or program
    return Tools(found["qemu-system-x86_64"], found["qemu-img"], found["xorriso"], found["ssh"])


def read_wanted(params: dict[str, t.Any], running: bool) -> Wanted:
    names = set(Wanted.__dataclass_fields__) & set(params)
    given = {name: params[name] for name in names}
    if given["seed"] is not None:
        given["seed"] = {key: given["seed"][key] for key in SEED_KEYS if given["seed"].get(key) is not None}
    if given["image"] is not None:
        given["image"] = os.path.abspath(given["image"])
    if given["disks"] is not None:
        given["disks"] = [
            Disk(
                image=os.path.abspath(one["image"]) if one["image"] else "",
                image_format=one["image_format"] or "",
                capacity=one["size"],
            )
            for one in given["disks"]
        ]
    if given["port_forwards"] is not None:
        given["port_forwards"] = [qemu.Forward(**one) for one in given["port_forwards"]]
    if given["accelerator"] is not None and params["state"] == "started":
        keep = running and given["accelerator"] == "prefer"
        given["accelerator"] = None if keep else _qemu_host.choose_accelerator(given["accelerator"])
    return Wanted(**given, warm=params["warm_from"] is not None)


def check_params(params: dict[str, t.Any]) -> None:
    """Refuse what the argument spec cannot express, so that check mode does too."""
    for name in ("memory", "cpus"):
        if params[name] is not None and params[name] < 1:
            raise VmError(f"{name} must be at least 1, not {params[name]}")
    disks, forwards = params["disks"] or [], params["port_forwards"] or []
    if len(disks) > qemu.MOST_DISKS:
        raise VmError(f"there can be {qemu.MOST_DISKS} further disks, not {len(disks)}")
    for disk in disks:
        if disk["size"] and re.fullmatch(r"\d+(\.\d+)?[KMGT]?", disk["size"]) is None:
            raise VmError(f"the size of a disk is a number with K, M, G or T, not {disk['size']!r}")
    ports = [params["ssh_port"] or 0]
    targets = [("tcp", 22)]
    for one in forwards:
        ports += [one["guest_port"], one["host_port"]]
        targets.append((one["protocol"], one["guest_port"]))
    for port in ports:
        if not 0 <= port <= 65535:
            raise VmError(f"{port} is not a port")
    for target in set(targets):
        if targets.count(target) > 1:
            raise VmError(f"the guest's {target[0]} port {target[1]} is forwarded twice (ssh_port leads to 22)")


def run(module: AnsibleModule, directory: Path, vm: Vm) -> dict[str, t.Any]:
    params = module.params
    check_params(params)
    warm_from = Path(os.path.abspath(params["warm_from"])) if params["warm_from"] else None
    if params["state"] == "started":
        _qemu_host.check_directory(directory)
    make = params["state"] == "started" and not module.check_mode and not directory.is_dir()
    if make:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # another run may be as far
        except OSError as exc:
            raise VmError(f"cannot make {directory}: {exc.strerror}") from exc
    os.umask(0o077)  # a seed, a log or the memory in a snapshot may hold secrets
    try:
        with locked(directory) if directory.is_dir() else contextlib.nullcontext():
            current = gather(directory)
            wanted = read_wanted(params, current.running)
            plan = decide(current, wanted)
            if plan.create and warm_from is None and current.record and current.record.begun_from:
                warm_from = Path(current.record.begun_from)
            if params["wait_for"] == "cloud_init" and wanted.snapshot and params["state"] == "started":
                raise VmError("wait_for=cloud_init waits for the end of a boot, but a restored VM does not boot")
            record = vm.prepare(current, plan, wanted, warm_from)
            before = state_of(current)
            after = {"started": "running", "stopped": "stopped", "absent": "absent"}.get(params["state"], "stopped")
            if params["state"] == "snapshot" and params["keep_running"]:
                after = "running"
            if params["state"] == "stopped" and current.record is None:
                after = "absent"
            behind = record is not None and record.clock_behind
            set_clock = behind and params["state"] == "started" and params["ssh_user"] is not None
            if not module.check_mode:
                record = vm.apply(current, plan, record, wanted, warm_from)
            elif plan.start and record is not None:
                vm.try_machine(record.machine)
    finally:
        if make:
            with contextlib.suppress(OSError):
                directory.rmdir()  # only if it stayed empty
    result: dict[str, t.Any] = {
        "changed": plan.changed or set_clock,
        "reason": plan.reason if plan.changed or not set_clock else f"{plan.reason}, but its clock was never set",
        "vm": describe(directory, None if after == "absent" else record, after),
        "stopped_by": vm.stopped_by,
        "ssh_banner": None,
        "cloud_init": None,
        "clock_set": False,
    }
    if module._diff:
        result["diff"] = {"before": {"state": before}, "after": {"state": after}}
    if params["state"] == "started" and not module.check_mode:
        wait(vm, directory, params, set_clock, result)
    return result


def wait(vm: Vm, directory: Path, params: dict[str, t.Any], set_clock: bool, result: dict[str, t.Any]) -> None:
    """Wait for what was asked for, put it into the result, and set the clock of a guest that was restored."""
    target = "ssh" if set_clock else params["wait_for"]
    if target == "none":
        return
    current = gather(directory)
    record, process = current.record, current.process
    phase = f"wait_for_{target}"
    if record is None or process is None or record.ssh_port is None:
        evidence = vm.evidence(record) if record else {}
        raise VmError("the VM ended right after its start", **{**result, **evidence}, phase=phase)
    watched = (directory / qemu.CONSOLE, record.console_offset, params["timeout"])
    try:
        if target == "ssh":
            result["ssh_banner"] = _qemu_wait.wait_for_ssh(process, record.ssh_port, *watched)
        else:
            result["cloud_init"] = _qemu_wait.wait_for_cloud_init(process, *watched)
        if set_clock:
            phase = "set_clock"
            vm.set_clock(record, params["ssh_user"], params["ssh_private_key_file"], params["timeout"])
            result["clock_set"] = True
    except (_qemu_wait.NoAnswer, VmError) as exc:
        raise VmError(f"{record.name}: {exc}", **result, **vm.evidence(record), phase=phase) from exc


def fail(module: AnsibleModule, error: VmError) -> t.NoReturn:
    message = str(error)
    details = error.details
    if details.get("command_line"):
        tail = "\n".join(details["console_tail"]) or "(nothing)"
        message += f"\nQEMU: {details['command_line']}\nThe last lines of the console:\n{tail}"
        if details["screenshot"]:
            message += f"\nThe screen: {details['screenshot']}"
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
            "disks": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "size": {"type": "str"},
                    "image": {"type": "path"},
                    "image_format": {"type": "str", "choices": ["qcow2", "raw"]},
                },
                "mutually_exclusive": [("size", "image")],
                "required_one_of": [("size", "image")],
            },
            "template": {"type": "bool"},
            "warm_from": {"type": "path"},
            "seed": {"type": "dict", "options": {key: {"type": "str"} for key in SEED_KEYS}},
            "machine": {"type": "str"},
            "memory": {"type": "int"},
            "cpus": {"type": "int"},
            "accelerator": {"type": "str", "choices": ["prefer", "require", "forbid", "kvm", "tcg"]},
            "cpu_model": {"type": "str"},
            "firmware": {"type": "str", "choices": ["bios", "uefi"]},
            "ssh_port": {"type": "int"},
            "port_forwards": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "guest_port": {"type": "int", "required": True},
                    "host_port": {"type": "int", "default": 0},
                    "protocol": {"type": "str", "choices": ["tcp", "udp"], "default": "tcp"},
                },
            },
            "snapshot": {"type": "str"},
            "ssh_user": {"type": "str"},
            "ssh_private_key_file": {"type": "path"},
            "keep_running": {"type": "bool", "default": False},
            "lifetime": {"type": "str", "choices": ["permanent", "play"]},
            "wait_for": {"type": "str", "choices": ["none", "ssh", "cloud_init"], "default": "none"},
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
