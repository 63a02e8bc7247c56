#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cml_gui_check
short_description: Find out how far a Cisco Modeling Labs controller has come, and what is in its way
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Goes up one level after the other, from the TCP port to the controller's own report on its health, and says where it
    stops and why.
  - Tells apart what looks the same in a browser. A web server whose controller is down (502), a user interface that
    answers in place of the API, a controller that is still starting, and one that will never be ready because no
    compute host can run VMs.
  - Every answer is read within the time and up to a size. Nothing is sent anywhere but to O(host), not even after a
    redirect, and no proxy is used.
requirements:
  - playwright and Chromium for O(level=browser)
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
    details: The module never changes anything. With a password it logs in, in check mode as well.
  diff_mode:
    support: N/A
    details: The module never changes anything.
  idempotent:
    support: full
  platform:
    platforms: posix
options:
  host:
    description:
      - The controller's name or address, or its address as V(https://HOST:PORT).
      - The host's own backend is V(http://ip6-localhost:8001).
      - If not given, the environment variable E(CML_HOST) is used.
    type: str
    required: true
    aliases: [url]
  port:
    description: The port, if it is not in O(host). The default is the one of the scheme, 443.
    type: int
  level:
    description: How far the controller must have come. Each level includes those before it.
    type: str
    choices:
      tcp: The port accepts connections.
      web: The start page is there.
      browser:
        - The start page renders in a real Chromium, has the fields for user name and password, and no error. After
          V(web), and not part of the levels below.
        - Needs the Python library playwright and Chromium where the module runs. The most useful place is the Ansible
          controller (C(delegate_to)).
      api: The API answers without a log-in, and says its version.
      ready: The API says that it is ready, which means that a compute host can start nodes.
      auth: O(username) and O(password) are accepted.
      health: The controller and all compute hosts are healthy and licensed.
    default: ready
  fail:
    description: Fail if RV(ok) is false. Otherwise the module only reports.
    type: bool
    default: false
  username:
    description: Account for the levels V(auth) and V(health). If not given, E(CML_USERNAME) is used.
    type: str
  password:
    description:
      - Its password. If not given, E(CML_PASSWORD) is used. It is sent over HTTPS, or to this machine itself, only.
      - With O(level=ready) a controller that is not ready is asked for the reason with it.
    type: str
  validate_certs:
    description: Whether the server's certificate must be valid and made for O(host).
    type: bool
    default: true
  ca_path:
    description: File or folder with the certificates of those who may have issued it, or with the server's own.
    type: path
  fingerprint:
    description:
      - SHA-256 fingerprint of the server's certificate, with or without colons. The certificate then need not be valid
        otherwise. RV(certificate) has the one that the server showed.
    type: str
  timeout:
    description: Seconds that one attempt may take, all its requests together.
    type: float
    default: 15.0
  wait:
    description:
      - Seconds to go on trying. V(0) makes one attempt.
      - Ends early when waiting makes no sense, as with a wrong password, an untrusted certificate, a wrong version, or
        no KVM.
    type: float
    default: 0.0
  interval:
    description: Seconds between two attempts.
    type: float
    default: 5.0
  expect_version:
    description:
      - What the version must be, as conditions with commas between them. V(2.9) means any 2.9.x, V(>=2.8,<2.10) is
        a range.
      - A version before a release, such as 2.9.0-dev0, is less than the release. The build is not compared.
    type: str
  browser_path:
    description:
      - The browser for O(level=browser). Without it C(chromium-headless-shell), C(chromium), C(chromium-browser) or
        C(google-chrome) from the search path is taken.
    type: path
  check_ports:
    description:
      - Ports of the host that must accept connections too. A CML host has V(443), V(80), V(1122) (its SSH), V(22) (the
        console server) and V(9090) (Cockpit).
      - On 22 and 1122 an SSH server must answer.
    type: list
    elements: int
    default: []
  kvm_usable:
    description:
      - RV(goldsmith.images.kvm_check#module:usable) of the module M(goldsmith.images.kvm_check) on the host, if the
        caller knows it. If false, a controller that is not ready is not waited for.
    type: bool
"""

EXAMPLES = r"""
---
- name: Wait up to 20 minutes for the controller
  goldsmith.images.cml_gui_check:
    host: cml.example.com
    wait: 1200
    fail: true

- name: See that a host with CML's own certificate is healthy
  goldsmith.images.cml_gui_check:
    host: cml.example.com
    fingerprint: "5D:0F:8A:22:7E:64:11:90:AB:3C:55:2D:7A:10:43:9E:5D:0F:8A:22:7E:64:11:90:AB:3C:55:2D:7A:10:43:9E"
    username: admin
    password: "{{ cml_password }}"
    level: health
    expect_version: ">=2.8"
    check_ports: [443, 80, 1122, 22, 9090]
  register: cml

- name: Show what is wrong
  ansible.builtin.debug:
    msg: "{{ cml.problems }} {{ cml.hint }}"

- name: Ask the backend on the host itself
  goldsmith.images.cml_gui_check:
    host: http://ip6-localhost:8001
    level: api
"""

RETURN = r"""
ok:
  description: The level was reached, and version and ports are as expected.
  returned: always
  type: bool
  sample: false
state:
  description:
    - V(unreachable) (no address, no route or no answer), V(refused), V(no_web) (no web server answers on the port),
      V(tls_error), V(reachable) (all that level V(tcp) wants), V(web) (all that V(web) and V(browser) want),
      V(page_broken) (the start page cannot be used in a browser).
    - V(web_only) (a web server that does not serve the API), V(backend_down) (the web server is up and the controller
      behind it is not), V(not_ready), V(ready).
    - V(auth_failed), V(licensed_no), V(unhealthy), V(ok).
  returned: always
  type: str
  sample: backend_down
level:
  description: The highest level that was reached, null if none was.
  returned: always
  type: str
  sample: web
error_class:
  description:
    - V(dns), V(refused), V(no_route), V(timeout), V(closed) (the server closed the connection), V(not_http).
    - V(certificate) (it is not trusted), V(not_tls), V(tls) (the handshake failed otherwise).
    - Null if the server answered.
  returned: always
  type: str
  sample: certificate
problems:
  description: Everything that is not as it was asked for.
  returned: always
  type: list
  elements: str
  sample: ["the version is 2.8.1+build.14, expected >=2.9"]
hint:
  description: What to look at next.
  returned: always, empty if all is well
  type: str
  sample: "The web server is up, the controller behind it is not."
page:
  description: The start page.
  returned: always, null below level V(web)
  type: dict
  contains: &answer
    url:
      description: Where redirects on the same host have led.
      type: str
      returned: always
      sample: https://cml.example.com/
    status:
      description: HTTP status.
      type: int
      returned: always
      sample: 200
    content_type:
      description: Content type without parameters.
      type: str
      returned: always
      sample: text/html
    location:
      description: Target of a redirect that was not followed, because it leads to another host or away from HTTPS.
      type: str
      returned: always
      sample: https://login.example.com/
    title:
      description: Title of the page. Only RV(page) has it.
      type: str
      returned: for the start page
      sample: Cisco Modeling Labs
browser:
  description: The start page as Chromium shows it.
  returned: always, null below level V(browser)
  type: dict
  contains:
    title:
      description: Its title.
      type: str
      returned: always
      sample: Cisco Modeling Labs
    user_field:
      description: Whether a field for the user name is visible.
      type: bool
      returned: always
      sample: true
    password_field:
      description: Whether a field for the password is visible.
      type: bool
      returned: always
      sample: true
    errors:
      description: Errors on the page's console, of its scripts, and of requests, those to other hosts included.
      type: list
      elements: str
      returned: always
      sample: []
api:
  description: The answer on the path of the API, with the keys of RV(page) except the title.
  returned: always, null below level V(api)
  type: dict
  contains: *answer
version:
  description: The version as the API says it.
  returned: always, null if it was not read
  type: str
  sample: 2.9.1+build.7
ready:
  description: Whether the API says that it is ready.
  returned: always, null if it was not read
  type: bool
  sample: true
never_ready_reason:
  description:
    - Why a controller that is not ready will not become ready by waiting. V(no_kvm) means that no compute host can run
      VMs, V(not_enough_cpus) that none has enough of them.
    - Known only with O(username) and O(password), or from O(kvm_usable).
  returned: always, null otherwise
  type: str
  sample: no_kvm
certificate:
  description: The server's certificate.
  returned: always, null without one
  type: dict
  contains:
    verified:
      description: Whether it was verified, against O(ca_path) or the system's authorities, or by O(fingerprint).
      type: bool
      returned: always
      sample: false
    problems:
      description: Everything that is wrong with it, apart from the pinned fingerprint.
      type: list
      elements: str
      returned: always
      sample: [self-signed, made for another name than cml.example.com]
    fingerprint:
      description: SHA-256 fingerprint.
      type: str
      returned: always
      sample: 5d0f8a227e641190ab3c552d7a10439e5d0f8a227e641190ab3c552d7a10439e
    subject:
      description: Whom it is for.
      type: str
      returned: always, null if it could not be parsed
      sample: commonName=cml-controller
    issuer:
      description: Who made it.
      type: str
      returned: always, null if it could not be parsed
      sample: commonName=cml-controller
    names:
      description: Names and addresses that it is valid for.
      type: list
      elements: str
      returned: always
      sample: [cml-controller]
    not_before:
      description: Begin of its validity, in UTC.
      type: str
      returned: always, null if it could not be parsed
      sample: "2026-01-01T00:00:00Z"
    not_after:
      description: End of its validity, in UTC.
      type: str
      returned: always, null if it could not be parsed
      sample: "2036-01-01T00:00:00Z"
    days_left:
      description: Days until then, negative after it.
      type: int
      returned: always, null if it could not be parsed
      sample: 3321
health:
  description: The controller's report on its health. What it does not say is null, or missing in the lists of flags.
  returned: always, null if it was not read
  type: dict
  contains:
    valid:
      description: The controller's own verdict.
      type: bool
      returned: always
      sample: false
    licensed:
      description: Whether the product is licensed.
      type: bool
      returned: always
      sample: true
    enterprise:
      description: Whether it is an enterprise edition.
      type: bool
      returned: always
      sample: false
    controller:
      description: Flags of the controller.
      type: dict
      returned: always
      sample: {core_connected: true, images_loaded: true, nodes_loaded: true, valid: true}
    computes:
      description: The compute hosts, with their flags.
      type: list
      elements: dict
      returned: always
      sample:
        - id: 2d2a0b1c
          hostname: cml-controller
          admission_state: READY
          flags: {kvm_vmx_enabled: false, enough_cpus: true}
ports:
  description: The ports of O(check_ports).
  returned: always
  type: list
  elements: dict
  contains:
    port:
      description: The port.
      type: int
      returned: always
      sample: 1122
    service:
      description: What CML uses it for.
      type: str
      returned: always
      sample: SSH of the host
    state:
      description: V(open), V(refused) (nothing listens), V(timeout) (filtered), V(no_route) or V(dns).
      type: str
      returned: always
      sample: open
    banner:
      description: What the SSH server said.
      type: str
      returned: always, null on other ports
      sample: SSH-2.0-OpenSSH_9.6p1
attempts:
  description: How often it was tried.
  returned: always
  type: int
  sample: 3
elapsed:
  description: Seconds that it took.
  returned: always
  type: float
  sample: 10.27
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _cml_gui, _cml_spec


def main() -> t.NoReturn:
    module = AnsibleModule(argument_spec=_cml_spec.SPEC, supports_check_mode=True)
    try:
        result = _cml_gui.Check(_cml_spec.read(module.params)).run()
    except _cml_gui.CmlError as error:
        module.fail_json(msg=str(error))
    if module.params["fail"] and not result["ok"]:
        module.fail_json(msg=" ".join([f"{'; '.join(result['problems'])}.", result["hint"]]), changed=False, **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
