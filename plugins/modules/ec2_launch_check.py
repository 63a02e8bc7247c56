#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ec2_launch_check
short_description: Find out whether an EC2 instance has come up as it should, and what its console says if not
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Looks at an instance that was started from an image, from AWS's side. Its state and status checks, its console with
    the faults of booting machines that are known, its network interfaces, the rules of its security groups, and its
    registration with Systems Manager.
  - Then, if asked to, from outside, over TCP and at the user interface of Cisco Modeling Labs.
  - Has a verdict for each check, with the lines of the console that matter and a hint where to look.
  - What AWS does not allow to be looked at is a failure, not a pass.
extends_documentation_fragment:
  - goldsmith.images.attributes
  - goldsmith.images.aws
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
    platforms: posix
options:
  region:
    description: The region of the instance.
    type: str
    required: true
  instance_id:
    description: The instance.
    type: str
    required: true
  console:
    description:
      - Whether its console is looked at, for lines of known faults, such as C(redirection unexpected), errors of
        cloud-init, a kernel panic, or a network that never came up.
      - An empty console is a warning.
    type: bool
    default: true
  console_expect:
    description:
      - A regular expression; a line of the console must match. With O(wait) it is waited for, so that a fault at the
        end of the boot is not missed.
      - V(Cloud-init v.* finished) is what machines with cloud-init print at the end.
    type: str
  console_ignore:
    description: Known faults that are none for this machine.
    type: list
    elements: str
    choices:
      - kernel_panic
      - root_not_found
      - boot_loader
      - emergency_mode
      - shell_syntax
      - cloud_init
      - network_never_up
      - disk_full
      - file_system
      - out_of_memory
      - unit_failed
    default: []
  ports:
    description:
      - Ports that the security groups must open, each as V(22), V(2000-7999) or V(2000-7999/udp), to every one of
        O(sources). Only rules are looked at; nothing is sent to the instance.
      - The rules of the first interface count, with the networks of their prefix lists. Rules for other security groups
        do not.
    type: list
    elements: str
    default: []
  sources:
    description: Networks that must get in, such as V(192.0.2.0/24) or V(2001:db8::/32). Needed with O(ports).
    type: list
    elements: str
    default: []
  ssm:
    description:
      - Whether the instance must have registered with Systems Manager. Say V(false) for images without the agent.
    type: bool
    default: true
  address:
    description:
      - Name or address for O(connect_ports) and O(cml_gui). By default the public address of the first interface, or
        its private one.
    type: str
  connect_ports:
    description: TCP ports that must accept connections from the machine that the module runs on.
    type: list
    elements: int
    default: []
  cml_gui:
    description:
      - Look at the user interface of Cisco Modeling Labs from the machine that the module runs on, as
        M(goldsmith.images.cml_gui_check) does. V({}) takes its defaults.
    type: dict
    suboptions:
      level:
        description: How far the controller must have come.
        type: str
        choices: [tcp, web, browser, api, ready, auth, health]
        default: ready
      port:
        description: Its port. The default is 443.
        type: int
      username:
        description: Account for the levels V(auth) and V(health). If not given, E(CML_USERNAME) is used.
        type: str
      password:
        description: Its password. If not given, E(CML_PASSWORD) is used.
        type: str
      validate_certs:
        description: Whether its certificate must be valid and made for O(address).
        type: bool
        default: true
      ca_path:
        description: File or folder with the certificates of those who may have issued it.
        type: path
      fingerprint:
        description: SHA-256 fingerprint of its certificate, which need not be valid otherwise then.
        type: str
      expect_version:
        description: What its version must be, such as V(>=2.8,<2.10).
        type: str
  timeout:
    description: Seconds for one attempt to connect from outside.
    type: float
    default: 10.0
  wait:
    description:
      - Seconds to wait for what may still come. V(0) looks once. A new instance needs some minutes for its status
        checks.
      - Ends early when waiting makes no sense, as with an instance that has stopped or a fault on its console.
      - O(connect_ports) and O(cml_gui) get what is left of it, unless something has failed before.
    type: float
    default: 0.0
  interval:
    description: Seconds between two looks. Each is four calls to AWS, or a few more.
    type: float
    default: 10.0
  fail:
    description: Fail if RV(ok) is false. Otherwise the module only reports.
    type: bool
    default: false
seealso:
  - module: goldsmith.images.cml_gui_check
  - module: goldsmith.images.net_validate
  - name: Guide
    description: AMIs from the upload to the end of their life, with the permissions that are needed.
    link: https://github.com/goldsmith-images/goldsmith.images/blob/main/docs/aws.md
"""

EXAMPLES = r"""
---
- name: Wait until a new instance is up, and see that its boot was clean
  goldsmith.images.ec2_launch_check:
    region: eu-west-1
    instance_id: i-0123456789abcdef0
    console_expect: Cloud-init v.* finished
    ssm: false
    wait: 600
    fail: true

- name: See that a CML host is open to the office, and works
  goldsmith.images.ec2_launch_check:
    region: eu-west-1
    instance_id: i-0123456789abcdef0
    ports: [443, 1122, 2000-7999, 2000-7999/udp]
    sources: [192.0.2.0/24]
    connect_ports: [1122]
    cml_gui:
      level: ready
      fingerprint: "5D:0F:8A:22:7E:64:11:90:AB:3C:55:2D:7A:10:43:9E:5D:0F:8A:22:7E:64:11:90:AB:3C:55:2D:7A:10:43:9E"
    wait: 1200
  register: launched

- name: Show what is wrong
  ansible.builtin.debug:
    msg: "{{ item.name }} {{ item.target }}: {{ item.detail }} {{ item.hint }} {{ item.lines | join(' | ') }}"
  loop: "{{ launched.checks | selectattr('status', 'equalto', 'fail') }}"
  loop_control:
    label: "{{ item.name }}"
"""

RETURN = r"""
ok:
  description: No check failed.
  returned: when the instance was found
  type: bool
  sample: false
degraded:
  description: A check ended with a warning.
  returned: when the instance was found
  type: bool
  sample: false
summary:
  description: How many checks ended in which way.
  returned: when the instance was found
  type: dict
  sample: {pass: 5, warn: 0, fail: 1, skip: 0}
checks:
  description: A verdict for each check.
  returned: when the instance was found
  type: list
  elements: dict
  contains:
    name:
      description:
        - V(state), V(system_status), V(instance_status), V(ebs_status) (where EC2 has it), V(console), V(interface),
          V(port), V(ssm), V(tcp) or V(cml_gui). V(status) if EC2 did not let us see the status checks.
      returned: always
      type: str
      sample: console
    target:
      description:
        - What was looked at. For V(console) the fault, or V(expected) for O(console_expect); for V(port) the ports and
          the network.
      returned: always, empty where there is only one
      type: str
      sample: shell_syntax
    status:
      description: V(pass), V(warn), V(fail), or V(skip) for what could not be judged.
      returned: always
      type: str
      sample: fail
    detail:
      description: What was found.
      returned: always
      type: str
      sample: "1 line: /var/lib/cloud/instance/scripts/runcmd: 3: Syntax error: redirection unexpected"
    hint:
      description: What to look at.
      returned: always, empty if it passed
      type: str
      sample: "A script of bash ran under /bin/sh, which stopped half way: begin it with #!/bin/bash."
    lines:
      description: The first lines of the console that show the fault, five at the most.
      returned: always
      type: list
      elements: str
      sample: ["/var/lib/cloud/instance/scripts/runcmd: 3: Syntax error: redirection unexpected"]
instance:
  description: The instance.
  returned: when it was found
  type: dict
  contains:
    instance_id:
      description: Its id.
      returned: always
      type: str
      sample: i-0123456789abcdef0
    image_id:
      description: The image that it was started from.
      returned: always
      type: str
      sample: ami-0123456789abcdef0
    instance_type:
      description: Its type.
      returned: always
      type: str
      sample: m8i.xlarge
    state:
      description: Its state, in EC2's words.
      returned: always
      type: str
      sample: running
    launched:
      description: When it was started, in UTC.
      returned: always
      type: str
      sample: "2026-11-27T06:00:00Z"
    public_address:
      description: The public address of its first interface.
      returned: always, null if there is none
      type: str
      sample: 198.51.100.7
    private_address:
      description: The private address of its first interface.
      returned: always, null if there is none
      type: str
      sample: 10.0.0.7
    security_groups:
      description: The security groups of its first interface.
      returned: always
      type: list
      elements: str
      sample: [sg-0123456789abcdef0]
console_tail:
  description: The last 20 lines of the console.
  returned: when the instance was found; empty if RV(ok)
  type: list
  elements: str
  sample: ["node login:"]
cml_gui:
  description: What M(goldsmith.images.cml_gui_check) returns.
  returned: when the instance was found; null without O(cml_gui), or if there was nothing to look at
  type: dict
  sample: {ok: true, state: ready, level: ready, version: 2.9.1+build.7}
attempts:
  description: How often AWS was asked.
  returned: when the instance was found
  type: int
  sample: 14
elapsed:
  description: Seconds that it took.
  returned: when the instance was found
  type: float
  sample: 151.3
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils import _ec2_launch as logic


def main() -> t.NoReturn:
    module = AnsibleModule(argument_spec={**aws.LOGIN_SPEC, **logic.SPEC}, supports_check_mode=True, **aws.LOGIN_RULES)
    if aws.BOTO3_ERROR is not None:
        module.fail_json(msg=missing_required_lib("boto3"), exception=aws.BOTO3_ERROR)
    params = module.params
    try:
        wanted = logic.Wanted.of(params)
        account = aws.Aws.of(params, params["region"]).account(aws.Login.of(params))
        result = logic.Launch(account, wanted)()
    except (aws.AwsError, logic.LaunchError) as error:
        module.fail_json(msg=str(error))
    bad = [check for check in result["checks"] if check["status"] == "fail"]
    if params["fail"] and bad:
        lines = [f"{check['name']} {check['target']}".rstrip() + f": {check['detail']}" for check in bad]
        module.fail_json(msg=f"{params['instance_id']} is not as it should be: {'; '.join(lines)}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
