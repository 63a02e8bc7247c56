#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: net_validate
short_description: Find out what works of a machine's network, and what to look at where it does not
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Checks interfaces, the default route, the path's MTU, name servers, ICMP, TCP, HTTP(S), apt repositories, the clock,
    and on EC2 the metadata service and the endpoints of the SSM agent.
  - All checks run side by side under one deadline, so all take as long as the slowest.
  - Each check ends as V(pass), V(warn), V(fail) or V(skip), with the kind of error and a hint that says what to look
    at.
  - Nothing is sent to a host that the options do not name. Without options only this machine's interfaces and routes
    are
    looked at. Redirects are not followed.
  - Changes nothing. Answers are read up to a limit, so a server that never stops sending costs neither memory nor time.
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
options:
  interfaces:
    description:
      - Names of interfaces, or patterns such as V(en*). For each, one interface that fits must be up, have a carrier
        and an
        address that others can answer to. A pattern does not mean the loopback interface.
      - An empty list looks at none.
    type: list
    elements: str
    default: ["*"]
  expect:
    description: What interfaces, routes and hosts should have.
    type: dict
    default: {}
    suboptions:
      mtu:
        description: MTU of the interfaces.
        type: int
      address_family:
        description:
          - Addresses, routes and connections must be of this family; V(dual) wants an address and a default route of
            both.
            Without it one of both is enough.
        type: str
        choices: [ipv4, ipv6, dual]
  default_route:
    description: Whether to look at the default route.
    type: bool
    default: true
  mtu:
    description:
      - Measures whether large packets arrive. Paths that lose them without a word let connections open, and then hang.
    type: dict
    suboptions:
      targets:
        description:
          - Hosts that get ICMP echo requests of many sizes. With a port, C(HOST:PORT), three full segments are sent
            there
            over TCP (as a HEAD request with padding) if the host does not answer ICMP.
        type: list
        elements: str
        required: true
      size:
        description:
          - Bytes that a packet must be able to have, with its headers. Without it the MTU of the interface that leads
            there
            is tried, and less is a warning if routers say so, and a failure if packets vanish.
        type: int
  dns:
    description: Asks name servers, each by itself, and this machine's resolver.
    type: dict
    suboptions:
      names:
        description: Names that must resolve.
        type: list
        elements: str
        default: []
      servers:
        description:
          - Addresses of the servers to ask, with C(:PORT) where it is not 53. Without it those in
            C(/etc/resolv.conf), and
            those behind the stub of systemd-resolved; with an empty list only this machine's resolver is asked.
        type: list
        elements: str
      hijack_probe:
        description: Also ask for a random name that does not exist; an address in the answer is a failure.
        type: bool
        default: false
      hijack_domain:
        description:
          - Domain of that name. V(invalid) is certain not to exist, but a resolver may answer that without asking
            further.
        type: str
        default: invalid
  icmp:
    description:
      - Sends an echo request through an unprivileged ICMP socket, a raw socket, or the program ping, whichever is
        permitted
        first. Where none is, or there is no answer, a TCP connection is tried. RV(checks[].method) says what it was.
    type: dict
    suboptions:
      targets:
        description: Host names or addresses.
        type: list
        elements: str
        required: true
      required:
        description: Fail, and not only warn, for a host that answers neither. Many networks drop ICMP.
        type: bool
        default: false
      tcp_port:
        description: Port of the TCP connection; that it is refused shows as well that the host is up.
        type: int
        default: 443
  tcp:
    description: C(HOST:PORT) that must accept a connection. That it is refused and that nothing comes back are told
      apart.
    type: list
    elements: str
    default: []
  http:
    description: URLs to get.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description: URL, http or https, without credentials.
        type: str
        required: true
      expect_status:
        description: Status codes that are right. With V(204), a 200 or a redirection to elsewhere is a captive portal.
        type: list
        elements: int
        default: [200]
      expect_body:
        description: Regular expression that the first 256 KiB of the body must match somewhere.
        type: str
      expect_issuer:
        description: Text that the issuer's organisation and common name must contain, to find an inspecting proxy.
        type: str
      validate_certs:
        description: Whether the certificate must be valid.
        type: bool
        default: true
      proxy:
        description: URL of the proxy (C(http://HOST:PORT)), V(none), or V(environment) for C(http_proxy) and its kin.
        type: str
        default: environment
      proxy_username:
        description: User name for the proxy.
        type: str
      proxy_password:
        description: Password for the proxy.
        type: str
  apt:
    description: Gets the Release file (C(InRelease)) of repositories; it must be one, and be valid at this machine's
      time.
    type: dict
    suboptions:
      configured:
        description: Take all repositories that apt is configured to use over HTTP. Where apt's configuration names one
          file with keys (C(Signed-By)) and gpgv is installed, the signature is checked too, otherwise the dates alone.
        type: bool
        default: false
      repositories:
        description: Repositories.
        type: list
        elements: dict
        default: []
        suboptions:
          uri:
            description: URI as in apt's sources.
            type: str
            required: true
          suite:
            description: Suite; one that ends in a slash is a flat repository.
            type: str
            required: true
          keyring:
            description: Keyring that must hold the key of its signature. Needs gpgv on the target; without it is a
              warning.
            type: path
      proxy:
        description: URL of the proxy (C(http://HOST:PORT)), V(none), or V(environment) for C(http_proxy) and its kin.
        type: str
        default: environment
      proxy_username:
        description: User name for the proxy.
        type: str
      proxy_password:
        description: Password for the proxy.
        type: str
  time:
    description: Looks at the clock.
    type: dict
    suboptions:
      synchronised:
        description: The kernel must say that a time service keeps its clock. Nothing is sent.
        type: bool
        default: true
      servers:
        description: Time servers to compare with (SNTP); on EC2 V(169.254.169.123).
        type: list
        elements: str
        default: []
      max_offset:
        description: Seconds that the clock may be wrong.
        type: float
        default: 1.0
  imds:
    description: Ask the EC2 instance metadata service for the instance's id by IMDSv2. Answers without a token are a
      warning.
    type: bool
    default: false
  imds_endpoint:
    description: Where the metadata service is; over IPv6 V(http://[fd00:ec2::254]). Never through a proxy.
    type: str
    default: http://169.254.169.254
  ssm:
    description: Name, connection and certificate of the endpoints that the SSM agent needs.
    type: dict
    suboptions:
      region:
        description: AWS region.
        type: str
        required: true
      agent_version:
        description:
          - Version of the agent; before 3.3.40.0 it also needs C(ec2messages). Without it the installed agent is
            asked, and
            without one a new agent is assumed.
        type: str
  ca_path:
    description: File with the certificates of the authorities to trust, instead of the system's.
    type: path
  timeout:
    description: Seconds after which everything ends.
    type: float
    default: 10.0
  retries:
    description:
      - How often a check that does not pass is made again. The attempts are spread evenly over O(timeout), and each
        has its
        share of it.
    type: int
    default: 0
  parallel:
    description: How many checks run at the same time.
    type: int
    default: 64
  fail_on:
    description: Fail the task if a check ends like that. Without it the module only reports.
    type: list
    elements: str
    choices: [fail, warn, skip]
    default: []
"""

EXAMPLES = r"""
---
- name: Look at the interfaces and the default route
  goldsmith.images.net_validate:
  register: network

- name: Show what is wrong
  ansible.builtin.debug:
    msg: "{{ network.checks | rejectattr('status', 'equalto', 'pass') }}"

- name: Stop unless this machine can install packages
  goldsmith.images.net_validate:
    dns:
      names: [mirror.example.org]
      hijack_probe: true
    apt:
      configured: true
    time:
      max_offset: 5
    retries: 2
    timeout: 30
    fail_on: [fail]

- name: Find a captive portal, and whether the proxy works
  goldsmith.images.net_validate:
    http:
      - url: http://probe.example.org/generate_204
        expect_status: [204]
        proxy: none
      - url: https://www.example.org/
        proxy: http://proxy.example.org:3128

- name: Check the network of an EC2 instance
  goldsmith.images.net_validate:
    mtu:
      targets: [10.0.0.10:443]
    tcp: [10.0.0.10:443]
    time:
      servers: [169.254.169.123]
    imds: true
    ssm:
      region: eu-central-1

- name: Check only a service on this machine
  goldsmith.images.net_validate:
    interfaces: []
    default_route: false
    tcp: [127.0.0.1:22]
    timeout: 2
"""

RETURN = r"""
ok:
  description: No check failed.
  returned: always
  type: bool
  sample: true
degraded:
  description: A check ended with a warning.
  returned: always
  type: bool
  sample: false
summary:
  description: How many checks ended in which way.
  returned: always
  type: dict
  contains:
    pass:
      description: In order.
      returned: always
      type: int
      sample: 5
    warn:
      description: Works, but should be looked at; also a failure of what is not required.
      returned: always
      type: int
      sample: 1
    fail:
      description: Does not work.
      returned: always
      type: int
      sample: 0
    skip:
      description: Could not be looked at.
      returned: always
      type: int
      sample: 0
checks:
  description: One entry for each check, in the order of the options.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description:
        - V(interface), V(default_route), V(mtu), V(dns), V(dns_hijack), V(icmp), V(tcp), V(http), V(apt), V(time),
          V(imds) or
          V(ssm).
      returned: always
      type: str
      sample: tcp
    target:
      description: What was looked at.
      returned: always
      type: str
      sample: 192.0.2.7:443
    status:
      description: V(pass), V(warn), V(fail) or V(skip).
      returned: always
      type: str
      sample: fail
    method:
      description:
        - How it was found out; V(ip), V(udp), V(tcp), V(getaddrinfo), V(icmp_dgram), V(icmp_raw), V(ping),
          V(tcp_payload),
          V(direct), V(tls), V(imdsv2), V(sntp), V(adjtimex), or the proxy.
      returned: always, null if it did not come that far
      type: str
      sample: tcp
    latency_ms:
      description: Milliseconds until the answer, or until the check was given up.
      returned: always
      type: float
      sample: 3.4
    error_class:
      description:
        - Kind of the problem, for programs. For example V(refused) (the host is up), V(filtered) (nothing came back),
          V(no_route), V(host_unreachable), V(mtu_black_hole), V(dns_timeout), V(dns_hijack), V(captive_portal),
          V(proxy_auth), V(tls_expired), V(release_expired), V(clock_skew). The page docs/net_validate.md has all.
      returned: always, null if there is none
      type: str
      sample: filtered
    detail:
      description: What was found.
      returned: always
      type: str
      sample: "port 443: 192.0.2.7: no answer"
    hint:
      description: What to look at.
      returned: always, empty if it passed
      type: str
      sample: Neither an answer nor a refusal; a firewall, a security group or network ACL drops it, or the host is
        down.
    attempts:
      description: How many times it was tried.
      returned: always
      type: int
      sample: 1
elapsed_ms:
  description: Milliseconds that all checks took together.
  returned: always
  type: float
  sample: 104.2
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _net_plan, _net_run, _net_spec
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import InputError


def main() -> t.NoReturn:
    module = AnsibleModule(argument_spec=_net_spec.SPEC, supports_check_mode=True)
    start = time.monotonic()
    try:
        options = _net_spec.complete(module.params)
        checks = _net_plan.plan(options)
    except InputError as exc:
        module.fail_json(msg=str(exc))
    left = options["timeout"] - (time.monotonic() - start)
    results = _net_run.run(checks, left, options["retries"], options["parallel"])
    result = {**_net_run.report(results), "elapsed_ms": round((time.monotonic() - start) * 1000, 2)}
    bad = [entry for entry in result["checks"] if entry["status"] in options["fail_on"]]
    if bad:
        lines = "\n".join(_net_run.line(entry) for entry in bad)
        module.fail_json(msg=f"{len(bad)} of {len(results)} checks of the network did not pass:\n{lines}", **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
