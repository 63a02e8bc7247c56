#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cloud_init_validate
short_description: Check cloud-init's user-data before a machine boots with it, and cloud-init's run on one that has
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Checks user-data of every kind (cloud-config, script, multipart, gzip, template, include, archive), network-config
    and the scripts that cloud-init runs at each boot. It asks cloud-init's own schema, and looks at every command and
    script with the parser of the shell that will run it, with shellcheck and with checkbashisms. None of them finds
    everything; C(cloud-init schema) calls a C(runcmd) valid that ends with a syntax error.
  - C(/bin/sh) of Debian and Ubuntu is dash. It runs a script up to the first line that it cannot parse, so that bash
    syntax leaves a machine half made.
  - Positions are those in the file that was given, also for what stands in C(runcmd), C(write_files), multipart or an
    archive. Of what is compressed or encoded they are those in the decoded part.
  - RV(valid) is true only if everything could be judged. Where a program is missing, RV(evaluated) is false and
    RV(tools_missing) names it.
  - Changes nothing and fetches nothing; nothing of what it checks is run.
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
    details: The module never changes anything.
  diff_mode:
    support: N/A
    details: The module never changes anything.
  idempotent:
    support: full
  platform:
    platforms: linux
requirements:
  - PyYAML for what is YAML (python3-yaml; every machine with cloud-init has it)
  - dash, bash, shellcheck, checkbashisms (devscripts) and cloud-init, of which what is missing is reported
options:
  src:
    description:
      - Files, or directories whose files are checked. A file's kind is known by its content, and by its name or place
        if that is C(network-config), C(meta-data), C(*.cfg) (configuration of the system, which needs no first line)
        or the folder C(per-boot), C(per-instance) or C(per-once).
      - A file of more than 256 KiB is an error.
    type: list
    elements: path
  content:
    description: User-data as text, such as a rendered template.
    type: str
  system:
    description:
      - "Check this machine: C(cloud-init status), the user-data it was given, its scripts and its
        C(/etc/cloud/cloud.cfg.d). Needs root."
    type: bool
    default: false
  type:
    description: What O(src) and O(content) are. V(auto) looks.
    type: str
    choices: [auto, cloud-config, network-config, script, mime]
    default: auto
  shell:
    description:
      - What C(/bin/sh) is on the machine that will boot with this. V(auto) is dash; with O(system=true), what it is
        here.
    type: str
    choices: [auto, dash, bash]
    default: auto
  checkers:
    description:
      - Which to ask. V(syntax) is C(dash -n) or C(bash -n), whose verdict is certain.
    type: list
    elements: str
    choices: [schema, syntax, shellcheck, checkbashisms]
    default: [schema, syntax, shellcheck, checkbashisms]
  severity:
    description: The least severity that makes a finding one of RV(problems).
    type: str
    choices: [info, warning, error]
    default: warning
  ignore:
    description: Codes of findings to leave out, such as V(SC2034) or V(no-errexit).
    type: list
    elements: str
    default: []
  deprecations:
    description: Whether keys that cloud-init will drop are only in RV(deprecated_keys), or warned of, or a problem.
    type: str
    choices: [ignore, warn, fail]
    default: warn
  instance_data:
    description:
      - A JSON file with instance data (C(/run/cloud-init/instance-data.json)) with which cloud-init's schema renders
        templates. Without it they are not evaluated by the schema. The shell checkers see templates with words in place
        of expressions, and all branches.
    type: path
  size_limit:
    description: Bytes of user-data that the platform takes; V(16384) is that of EC2. V(0) is no limit.
    type: int
    default: 16384
  status_wait:
    description:
      - With O(system=true), up to how many seconds to wait for the end of cloud-init.
    type: float
    default: 0.0
  timeout:
    description: Seconds for all checks, not counting O(status_wait). What is not done then is not evaluated.
    type: float
    default: 120.0
  fail:
    description: Fail if there are RV(problems). Otherwise the module only reports.
    type: bool
    default: false
  require_evaluated:
    description: With O(fail=true), also fail if something could not be evaluated.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Look at user-data
  goldsmith.images.cloud_init_validate:
    content: |
      #cloud-config
      runcmd:
        - exec > >(tee /var/log/first-boot.log) 2>&1
        - apt-get install -y jq
  register: user_data

- name: Show what is wrong with it
  ansible.builtin.debug:
    var: user_data.problems

- name: Refuse user-data that would fail
  goldsmith.images.cloud_init_validate:
    content: |
      #cloud-config
      runcmd:
        - set -e
        - mkdir -p /opt/app
        - touch /opt/app/ready
    severity: error
    fail: true

- name: Check the scripts of every boot and the configuration of the system
  goldsmith.images.cloud_init_validate:
    src:
      - /etc/cloud/cloud.cfg.d
      - /var/lib/cloud/scripts/per-boot

- name: Wait for the first boot to end and insist that it went well
  goldsmith.images.cloud_init_validate:
    system: true
    status_wait: 300
    severity: error
    fail: true
"""

RETURN = r"""
valid:
  description: There are no RV(problems), and everything could be judged.
  returned: success, or when the problems are why it failed
  type: bool
  sample: false
evaluated:
  description: Everything could be judged. If false, RV(not_evaluated) and RV(tools_missing) say what could not.
  returned: success, or when the problems are why it failed
  type: bool
  sample: true
problems:
  description: What is of O(severity) or more, one line for each place, for people.
  returned: success, or when the problems are why it failed
  type: list
  elements: str
  sample:
    - "user-data:3:10: error: Syntax error: redirection unexpected. dash runs what stands before, then ends. Instead:
      Write to a named pipe or a file: `cmd >file 2>&1`. [syntax, runcmd]"
findings:
  description: Everything that was found, by every checker.
  returned: success, or when the problems are why it failed
  type: list
  elements: dict
  contains: &finding
    file:
      description: The file, V(content) for O(content), or V(cloud-init status).
      type: str
      returned: always
      sample: user-data
    origin:
      description: The part of it.
      type: str
      returned: always
      sample: runcmd
    line:
      description: Line in the file, from 1; null if it is about all of it.
      type: int
      returned: always
      sample: 3
    column:
      description: Column in the file, from 1.
      type: int
      returned: always
      sample: 10
    severity:
      description: V(info), V(warning) or V(error).
      type: str
      returned: always
      sample: error
    checker:
      description:
        - V(schema), V(dash), V(bash), V(shellcheck), V(checkbashisms), V(masked), V(yaml), V(content) or V(status).
      type: str
      returned: always
      sample: dash
    code:
      description: The kind of finding, for O(ignore).
      type: str
      returned: always
      sample: syntax
    message:
      description: What is wrong.
      type: str
      returned: always
      sample: "Syntax error: redirection unexpected."
    suggestion:
      description: What to write instead; empty if nothing is known.
      type: str
      returned: always
      sample: ""
masked_failures:
  description: Those of RV(findings) where a command's failure goes unheard.
  returned: success, or when the problems are why it failed
  type: list
  elements: dict
  contains: *finding
deprecated_keys:
  description: Keys that cloud-init will drop, in its own words.
  returned: success, or when the problems are why it failed
  type: list
  elements: str
  sample: ["apt_update:  Deprecated in version 22.2. Use package_update instead."]
scripts:
  description: The scripts that were found.
  returned: success, or when the problems are why it failed
  type: list
  elements: dict
  contains:
    file:
      description: The file it stands in.
      type: str
      returned: always
      sample: user-data
    origin:
      description: The part of it.
      type: str
      returned: always
      sample: runcmd
    line:
      description: Where it begins.
      type: int
      returned: always
      sample: 3
    shebang:
      description: What its first line says.
      type: str
      returned: always
      sample: /bin/sh
    shell:
      description: The shell it was judged for; empty if it is not for a shell.
      type: str
      returned: always
      sample: dash
    checkers:
      description: Who has looked at it.
      type: list
      returned: always
      sample: [dash, shellcheck]
schema:
  description: The answer of C(cloud-init schema) for each cloud-config and network-config.
  returned: success, or when the problems are why it failed
  type: list
  elements: dict
  contains:
    file:
      description: The file.
      type: str
      returned: always
      sample: user-data
    origin:
      description: The part of it.
      type: str
      returned: always
      sample: user-data
    evaluated:
      description: Whether the schema was applied. cloud-init ends with success where it was not.
      type: bool
      returned: always
      sample: true
    reason:
      description: Why it was not.
      type: str
      returned: always
      sample: ""
    rc:
      description: Its exit code, null if it was not run.
      type: int
      returned: always
      sample: 0
    stdout:
      description: What it said, on both channels.
      type: str
      returned: always
      sample: Valid schema user-data
size:
  description: The size of each user-data, in bytes.
  returned: success, or when the problems are why it failed
  type: list
  elements: dict
  sample: [{file: user-data, raw: 1200, gzip: 700, limit: 16384, fits: true}]
status:
  description: What C(cloud-init status) says.
  returned: success, or when the problems are why it failed, null without O(system)
  type: dict
  contains:
    state:
      description:
        - "V(done), V(degraded) (recoverable errors), V(error), V(running), V(not_started), V(disabled), V(missing)
          (there is no cloud-init) or V(unknown). The same for all versions."
      type: str
      returned: always
      sample: degraded
    status:
      description: C(status) as it was said.
      type: str
      returned: always
      sample: done
    extended_status:
      description: C(extended_status), from cloud-init 23.4; null before.
      type: str
      returned: always
      sample: degraded done
    exit_code:
      description: "The exit code: 0, 1 (error) or, from cloud-init 23.4, 2 (recoverable errors)."
      type: int
      returned: always
      sample: 2
    boot_status_code:
      description: Why cloud-init is enabled or not.
      type: str
      returned: always
      sample: enabled-by-generator
    datasource:
      description: Where the user-data came from.
      type: str
      returned: always
      sample: nocloud
    detail:
      description: Its description of the state.
      type: str
      returned: always
      sample: DataSourceNoCloud [seed=/dev/sr0]
    errors:
      description: Errors of all stages.
      type: list
      returned: always
      sample: []
    recoverable_errors:
      description: Those after which it went on, by level; empty before 23.4, which does not report them.
      type: dict
      returned: always
      sample: {WARNING: ["Failed to run module scripts_user"]}
    last_update:
      description: When it last changed.
      type: str
      returned: always
      sample: Thu, 01 Jan 1970 00:02:04 +0000
    timed_out:
      description: It had not ended within O(status_wait).
      type: bool
      returned: always
      sample: false
    waited:
      description: Seconds.
      type: float
      returned: always
      sample: 2.1
not_evaluated:
  description: What could not be judged, and why.
  returned: success, or when the problems are why it failed
  type: list
  elements: str
  sample: ["user-data: user-data: schema: cloud-init is not installed"]
tools_missing:
  description: Programs that were asked for and are not installed.
  returned: success, or when the problems are why it failed
  type: list
  elements: str
  sample: [cloud-init]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_report import (
    CHECKERS,
    SIZE_LIMIT,
    TYPES,
    Request,
)
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import SEVERITIES, CloudInitError
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_validate import validate


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "list", "elements": "path"},
            # User-data may hold secrets.
            "content": {"type": "str", "no_log": True},
            "system": {"type": "bool", "default": False},
            "type": {"type": "str", "choices": list(TYPES), "default": "auto"},
            "shell": {"type": "str", "choices": ["auto", "dash", "bash"], "default": "auto"},
            "checkers": {
                "type": "list",
                "elements": "str",
                "choices": list(CHECKERS),
                "default": list(CHECKERS),
            },
            "severity": {"type": "str", "choices": list(SEVERITIES), "default": "warning"},
            "ignore": {"type": "list", "elements": "str", "default": []},
            "deprecations": {"type": "str", "choices": ["ignore", "warn", "fail"], "default": "warn"},
            "instance_data": {"type": "path"},
            "size_limit": {"type": "int", "default": SIZE_LIMIT},
            "status_wait": {"type": "float", "default": 0.0},
            "timeout": {"type": "float", "default": 120.0},
            "fail": {"type": "bool", "default": False},
            "require_evaluated": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    wanted = dict(module.params)
    fail, require_evaluated = wanted.pop("fail"), wanted.pop("require_evaluated")
    wanted["src"] = wanted["src"] or []
    if not wanted["src"] and wanted["content"] is None and not wanted["system"]:
        module.fail_json(msg="say what to check: src, content or system")
    if wanted["timeout"] <= 0:
        module.fail_json(msg=f"timeout must be greater than 0, not {wanted['timeout']}")
    try:
        report = validate(Request(**wanted), module.tmpdir)
    except CloudInitError as error:
        module.fail_json(msg=str(error))
    # A schema's message quotes what it does not like, which may be a password.
    module.no_log_values.update(report.secrets)
    result = report.as_result(wanted["severity"])
    if wanted["deprecations"] == "warn":
        for text in report.deprecated_keys:
            module.warn(text)
    reasons = list(result["problems"])
    if require_evaluated and not result["evaluated"]:
        reasons += [f"not evaluated: {text}" for text in result["not_evaluated"]]
        reasons += [f"not installed: {name}" for name in result["tools_missing"]]
    if fail and reasons:
        module.fail_json(msg="cloud-init would not do what this says:\n" + "\n".join(reasons), changed=False, **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
