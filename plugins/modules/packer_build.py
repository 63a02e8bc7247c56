#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: packer_build
short_description: Build machine images with Packer
version_added: "0.1.0"
description:
  - Runs C(packer build) when something that the result depends on has changed, and only then.
  - Validates first, follows the build live, and reports builds, artifacts and errors from Packer's machine-readable
    output.
  - The whole build, its plugins and virtual machines included, runs under supervision. On a time-out, on SIGTERM,
    SIGINT or SIGHUP, when the controller goes away, and even when the module is killed, every process of the build is
    ended and its temporary files are removed. What a build starts ends with it.
  - Secrets reach Packer in a private file, never on its command line, and are removed from everything that this module
    prints, writes or returns. Packer's own filter does not work in machine-readable mode before 1.15.1.
author: goldsmith.images contributors (@goldsmith-images)
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
    details: Runs C(packer validate), which does not change anything. Writes no file and installs no plugin.
  diff_mode:
    support: full
    details: Lists what changed by name, never values.
  idempotent:
    support: full
    details: Unless O(rebuild=always).
  platform:
    support: full
    platforms: linux
requirements:
  - Packer 1.6.6 or later
  - Python 3.9 or later on the host that builds
options:
  template:
    description:
      - HCL template (file or directory) or legacy JSON template. Relative to O(chdir).
    type: path
    required: true
  chdir:
    description:
      - Directory in which Packer runs, and to which all relative paths of this module and of the template refer.
      - The default is the template's directory.
    type: path
  executable:
    description: Name or path of Packer.
    type: str
    default: packer
  variables:
    description:
      - Variables of the template. Types are kept for HCL templates; JSON templates get strings.
    type: dict
    default: {}
  sensitive_variables:
    description:
      - Variables whose values are secret. They are redacted in all output, also line by line and in escaped forms.
      - Values shorter than three characters cannot be told from ordinary text and are not redacted in the log.
    type: dict
    default: {}
  var_files:
    description: Variable files. O(variables) and O(sensitive_variables) win over them.
    type: list
    elements: path
    default: []
  only_builds:
    description: Build only these (names or globs). Cannot be used with O(except_builds).
    type: list
    elements: str
    default: []
  except_builds:
    description: Build all but these (names or globs). Cannot be used with O(only_builds).
    type: list
    elements: str
    default: []
  force:
    description:
      - Let Packer delete the existing output of the builder first.
      - With O(replace=swap) a copy of it survives until the new build has succeeded.
    type: bool
    default: false
  replace:
    description:
      - What happens to the last build's output while the next one runs.
      - V(swap) moves the recorded artifacts, and with O(force) the output directories that Packer would delete, aside
        (a rename), and back if the build does not succeed. Needs room for both. What a failed build leaves goes, or
        with another O(on_error) than V(cleanup) to the same name with C(.failed).
      - V(in_place) leaves it to Packer, which deletes or overwrites it before it knows whether the new build succeeds.
      - Output directories are found by C(packer validate), so O(validate_first=false) leaves these in place.
    type: str
    choices: [swap, in_place]
    default: swap
  on_error:
    description:
      - What Packer does with a half-built machine when provisioning fails.
      - Packer's C(ask) needs a terminal and is not possible here.
    type: str
    choices: [cleanup, abort, run-cleanup-provisioner]
    default: cleanup
  parallel_builds:
    description: How many builds may run at the same time; V(0) means all.
    type: int
    default: 0
  init:
    description:
      - Whether C(packer init) installs the plugins that an HCL template requires. Needs network access.
      - Ignored by Packer before 1.7, which has all its plugins built in.
    type: str
    choices: [auto, never, upgrade]
    default: auto
  validate_first:
    description:
      - Run C(packer validate) before the build.
      - Packer itself builds the valid part of a template that has a broken source.
    type: bool
    default: true
  strict_variables:
    description:
      - Fail when O(variables) or O(sensitive_variables) have a name that the template does not declare.
      - Needs O(validate_first=true).
    type: bool
    default: true
  inputs:
    description:
      - Files, directories and globs that the result also depends on, such as scripts, playbooks and seed data.
      - Their content is part of the fingerprint.
    type: list
    elements: path
    default: []
  fingerprint_extra:
    description: Any further value that must cause a new build when it changes.
    type: raw
  state_path:
    description:
      - File in which the last build is recorded.
      - The default is a file in C(.packer_build) below O(chdir), one for each template and selection of builds.
      - The build is recorded with keyed digests only; the file holds no value of a variable.
    type: path
  verify:
    description: How the recorded local artifacts are checked before a build is declared unnecessary.
    type: str
    choices: [exists, size, checksum]
    default: checksum
  rebuild:
    description:
      - V(if_changed) builds when the fingerprint differs or an artifact is missing or altered.
      - V(always) always builds. V(never) builds only when there is no usable earlier build.
    type: str
    choices: [if_changed, always, never]
    default: if_changed
  timeout:
    description: Seconds after which the run is cancelled; V(0) means no limit.
    type: float
    default: 0
  cancel_grace:
    description:
      - Seconds that a cancelled build has for its own cleaning up before it is killed.
      - Builders of clouds need minutes to terminate their instances.
    type: float
    default: 60
  log_path:
    description: File for the build's output, written line by line with mode 0600. An earlier one is replaced.
    type: path
  progress_path:
    description:
      - JSON file with the current C(phase), C(build), C(last) message, C(started), C(elapsed), all C(phases) so far,
        and for each of the C(builds) its own C(phase) and C(last).
      - It is replaced as a whole with each change.
    type: path
  progress_keep:
    description: Whether the file of O(progress_path) stays after the end.
    type: bool
    default: true
  no_progress:
    description: Do not show live progress on the controller.
    type: bool
    default: false
  console_log:
    description:
      - File to which the template lets QEMU write the serial console. Its last lines are returned when the build fails.
    type: path
  packer_log:
    description: Add Packer's own debugging log to the file of O(log_path).
    type: bool
    default: false
  cache_dir:
    description: Directory for Packer's downloads (E(PACKER_CACHE_DIR)).
    type: path
  plugin_path:
    description: Directory of plugins (E(PACKER_PLUGIN_PATH)).
    type: path
  environment:
    description:
      - Environment variables for Packer, added to those of the task.
      - Values of names that speak of a secret, token, password, credential or key are redacted like
        O(sensitive_variables); those of the task from eight characters on.
      - C(PKR_VAR_) variables, also those of the task, are part of the fingerprint.
    type: dict
    default: {}
  use_sequential_evaluation:
    description: Evaluate data sources and locals as Packer before 1.12 did. Needs Packer 1.12.
    type: bool
    default: false
  ignore_prerelease_plugins:
    description: Do not load plugins that are not releases. Needs Packer 1.11.
    type: bool
    default: false
  warn_on_undeclared_variables:
    description:
      - Warn about undeclared variables in O(var_files) also during the build. Needs Packer 1.9.
    type: bool
    default: false
notes:
  - Tested against the real Packer 1.6.6. What 1.7 to 1.16 accept and print is read from their source, and tested with a
    program that stands in for them.
"""

EXAMPLES = r"""
---
- name: Build the image if its template or a script has changed
  goldsmith.images.packer_build:
    template: /srv/images/debian.pkr.hcl
    variables:
      memory: 2048
      disk_size: 10G
    inputs:
      - scripts
      - http/*.cfg
    timeout: 3600

- name: Build with a secret, replace the old output, keep a log
  goldsmith.images.packer_build:
    template: /srv/images/app
    sensitive_variables:
      registry_password: "{{ vault_registry_password }}"
    force: true
    log_path: /var/log/app-image.log
  register: image

- name: Show what was built
  ansible.builtin.debug:
    msg: "{{ image.artifacts | map(attribute='files') | flatten | map(attribute='path') }}"
"""

RETURN = r"""
builds:
  description:
    - Each build with its C(name), C(builder_type), C(status), C(duration) in seconds, C(error) and C(artifacts).
    - C(status) is V(success), V(failed), V(cancelled) or V(not_run).
  returned: always
  type: list
  elements: dict
  sample: [{"name": "qemu.debian", "builder_type": "qemu", "status": "success", "duration": 166.2, "error": ""}]
artifacts:
  description:
    - Each artifact once, with C(build), C(builder_id), C(id), C(string), C(files) and C(amis).
    - C(files) has C(path) (absolute), C(size) in bytes and, with O(verify=checksum), C(sha256).
    - C(amis) maps regions to image ids.
    - When nothing had to be done, those of the recorded build.
  returned: always
  type: list
  elements: dict
  sample:
    - build: qemu.debian
      builder_id: transcend.qemu
      id: VM
      string: "VM files in directory: output"
      files: [{"path": "/srv/images/output/debian.qcow2", "size": 470286336, "sha256": "9f86d0..."}]
      amis: {}
errors:
  description: The errors of failed builds, with C(build) and C(message).
  returned: always
  type: list
  elements: dict
  sample: []
warnings:
  description: Packer's warnings about the template, and those of this module.
  returned: when there are any
  type: list
  elements: str
  sample: []
packer_version:
  description: Version of Packer; empty when it was not found.
  returned: always
  type: str
  sample: 1.6.6
fingerprint:
  description: Digest of everything that the result depends on. Comparable only with others of the same O(state_path).
  returned: always
  type: str
  sample: 6d2fd64b6b5a8e7e
reason:
  description: Why a build was needed, or that nothing has changed.
  returned: always
  type: str
  sample: "files changed: debian.pkr.hcl"
reasons:
  description: The same as a list; empty when no build was needed.
  returned: always
  type: list
  elements: str
  sample: ["files changed: debian.pkr.hcl"]
cmd:
  description: The last command line of Packer that mattered.
  returned: always
  type: list
  elements: str
  sample: ["/usr/bin/packer", "build", "-machine-readable", "debian.pkr.hcl"]
rc:
  description: Exit code of that command; V(0) when none ran.
  returned: always
  type: int
  sample: 0
phase:
  description:
    - Where the run ended. V(init), V(validate), V(build), and during a build V(download), V(boot) (until the
      machine answers), V(provision), V(shutdown), V(convert) or V(postprocess).
  returned: always
  type: str
  sample: convert
phases:
  description: Phases of the run with C(phase), C(build), C(at) (the second in which it began) and C(seconds).
  returned: always
  type: list
  elements: dict
  sample: [{"phase": "validate", "build": "", "at": 0.0, "seconds": 0.3}]
log_path:
  description: The log file; empty when there is none.
  returned: always
  type: str
  sample: /var/log/app-image.log
state_path:
  description: The file that records the last build.
  returned: always
  type: str
  sample: /srv/images/.packer_build/debian-0123456789ab.json
timed_out:
  description: Whether O(timeout) ended the run.
  returned: always
  type: bool
  sample: false
cancelled:
  description: Whether the run was cancelled, by O(timeout), a signal, or the loss of the controller.
  returned: always
  type: bool
  sample: false
stdout_tail:
  description: The last messages of Packer, at most 50.
  returned: always
  type: list
  elements: str
  sample: []
console:
  description: After a failure, the last 50 lines of O(console_log).
  returned: always
  type: list
  elements: str
  sample: []
qemu_command:
  description: Command line of the first virtual machine that the build started, if that was QEMU.
  returned: always
  type: list
  elements: str
  sample: ["/usr/bin/qemu-system-x86_64", "-m", "2048M"]
duration:
  description: Seconds that the whole run took.
  returned: always
  type: float
  sample: 166.9
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils._packer_cli import FLAGS, PackerError
from ansible_collections.goldsmith.images.plugins.module_utils._packer_run import Run, empty_result, prepare


def argument_spec() -> dict[str, t.Any]:
    return {
        "template": {"type": "path", "required": True},
        "chdir": {"type": "path"},
        "executable": {"type": "str", "default": "packer"},
        "variables": {"type": "dict", "default": {}},
        "sensitive_variables": {"type": "dict", "default": {}, "no_log": True},
        "var_files": {"type": "list", "elements": "path", "default": []},
        "only_builds": {"type": "list", "elements": "str", "default": []},
        "except_builds": {"type": "list", "elements": "str", "default": []},
        "force": {"type": "bool", "default": False},
        "on_error": {"type": "str", "choices": ["cleanup", "abort", "run-cleanup-provisioner"], "default": "cleanup"},
        "parallel_builds": {"type": "int", "default": 0},
        "init": {"type": "str", "choices": ["auto", "never", "upgrade"], "default": "auto"},
        "validate_first": {"type": "bool", "default": True},
        "strict_variables": {"type": "bool", "default": True},
        "inputs": {"type": "list", "elements": "path", "default": []},
        "fingerprint_extra": {"type": "raw"},
        "state_path": {"type": "path"},
        "verify": {"type": "str", "choices": ["exists", "size", "checksum"], "default": "checksum"},
        "rebuild": {"type": "str", "choices": ["if_changed", "always", "never"], "default": "if_changed"},
        "timeout": {"type": "float", "default": 0},
        "cancel_grace": {"type": "float", "default": 60},
        "log_path": {"type": "path"},
        "progress_path": {"type": "path"},
        "progress_keep": {"type": "bool", "default": True},
        "no_progress": {"type": "bool", "default": False},
        "console_log": {"type": "path"},
        "replace": {"type": "str", "choices": ["swap", "in_place"], "default": "swap"},
        **{name: {"type": "bool", "default": False} for name in FLAGS},
        "packer_log": {"type": "bool", "default": False},
        "cache_dir": {"type": "path"},
        "plugin_path": {"type": "path"},
        "environment": {"type": "dict", "default": {}},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=argument_spec(),
        supports_check_mode=True,
    )
    try:
        request, options = prepare(module.params)
        result = Run(request, options, module.check_mode, os.environ).execute()
    except PackerError as exc:
        result = {**empty_result(), **exc.details, "failed": True, "msg": str(exc)}
    for warning in result.pop("warnings"):
        module.warn(warning)
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
