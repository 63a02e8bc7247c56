# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""From options to checks. What cannot be meant is refused here, before anything is sent."""

from __future__ import annotations

import re
import ssl
import typing as t
from functools import partial

from ansible_collections.goldsmith.images.plugins.module_utils import (
    _net_apt,
    _net_aws,
    _net_dns,
    _net_http,
    _net_icmp,
    _net_link,
    _net_mtu,
    _net_socket,
    _net_targets,
    _net_time,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    Check,
    Deadline,
    Finding,
    InputError,
    Problem,
)

Options = t.Mapping[str, t.Any]


def plan(options: Options) -> list[Check]:
    """The checks that complete options (see _net_spec) ask for; InputError names the option that cannot be."""
    _check_limits(options)
    return [
        *_link_checks(options),
        *_mtu_checks(options),
        *_dns_checks(options),
        *_icmp_checks(options),
        *_tcp_checks(options),
        *_http_checks(options),
        *_apt_checks(options),
        *_time_checks(options),
        *_aws_checks(options),
    ]


def _check_limits(options: Options) -> None:
    for name, least in (("timeout", 0.1), ("retries", 0), ("parallel", 1)):
        if not least <= options[name] <= 3600:
            raise InputError(f"{name}: {options[name]} is not possible; from {least} to 3600")
    mtu, family = options["expect"]["mtu"], _wanted_family(options)
    if mtu is not None and not (1280 if family in ("ipv6", "dual") else 68) <= mtu <= 65536:
        raise InputError(f"expect.mtu: {mtu} is not possible: IPv4 needs at least 68, IPv6 1280, and 65536 is the most")


def _wanted_family(options: Options) -> str | None:
    return t.cast("str | None", options["expect"]["address_family"])


def _family(options: Options) -> int:
    """Address family for sockets; 0 where both will do."""
    return _net_socket.FAMILIES.get(_wanted_family(options) or "", 0)


def _agree(name: str, options: Options, option: str) -> str:
    """Refuse an address of the family that the caller does not expect."""
    found, family = _net_targets.address(name), _wanted_family(options)
    if found is not None and family in ("ipv4", "ipv6") and f"ipv{found.version}" != family:
        raise InputError(f"{option}: {name} is not of the family that expect.address_family names ({family})")
    return name


def _endpoint(text: str, options: Options, option: str, default_port: int | None = None) -> _net_targets.Endpoint:
    found = _net_targets.endpoint(text, option, default_port)
    _agree(found.host, options, option)
    return found


def _link_checks(options: Options) -> t.Iterator[Check]:
    family, mtu = _wanted_family(options), options["expect"]["mtu"]
    for pattern in options["interfaces"]:
        if not pattern or len(pattern) > 64:
            raise InputError(f"interfaces: {pattern!r} is no name of an interface and no pattern of one")
        yield Check("interface", pattern, partial(_net_link.check_interface, pattern, family, mtu))
    if options["default_route"]:
        yield Check("default_route", family or "any", partial(_net_link.check_default_route, family))


def _mtu_checks(options: Options) -> t.Iterator[Check]:
    if options["mtu"] is None:
        return
    size, expected = options["mtu"]["size"], options["expect"]["mtu"]
    if size is not None and not 576 <= size <= 65535:
        raise InputError(f"mtu.size: {size} is not possible; from 576 to 65535")
    if size is not None and expected is not None and size > expected:
        raise InputError(f"mtu.size: {size} is more than the interfaces are expected to send (expect.mtu: {expected})")
    for text in options["mtu"]["targets"]:
        where = _endpoint(text, options, "mtu.targets", default_port=80)
        by_tcp = text != where.host and text.strip("[]") != where.host  # a port was named
        look = partial(_net_mtu.check_mtu, where, by_tcp, size, _family(options))
        yield Check("mtu", text, look)


def _dns_checks(options: Options) -> t.Iterator[Check]:
    dns, family = options["dns"], _wanted_family(options)
    if dns is None:
        return
    if not dns["names"] and not dns["hijack_probe"]:
        raise InputError("dns: nothing is asked: give names, or hijack_probe")
    for name in dns["names"]:
        if _net_targets.address(_net_targets.host(name, "dns.names")) is not None:
            raise InputError(f"dns.names: {name} is an address; there is nothing to resolve")
    domain = _net_targets.host(dns["hijack_domain"], "dns.hijack_domain").rstrip(".")
    if dns["servers"] is None:
        servers = _net_dns.configured_servers()
        if not servers:
            yield Check("dns", "configured servers", _net_dns.no_server)
    else:
        servers = [_endpoint(text, options, "dns.servers", 53) for text in dns["servers"]]
        for server in servers:
            if _net_targets.address(server.host) is None:
                raise InputError(f"dns.servers: {server.host} must be an address: who would resolve its name?")
    for name in dns["names"]:
        yield Check("dns", f"{name} by this machine's resolver", partial(_net_dns.check_resolver, name, family))
        for server in servers:
            yield Check("dns", f"{name} by {server}", partial(_net_dns.check_server, server, name, family))
    if dns["hijack_probe"]:
        look: t.Callable[[Deadline], Finding] = partial(_net_dns.check_resolver_hijack, domain)
        yield Check("dns_hijack", "this machine's resolver", look)
        for server in servers:
            yield Check("dns_hijack", str(server), partial(_net_dns.check_server_hijack, server, domain))


def _icmp_checks(options: Options) -> t.Iterator[Check]:
    if options["icmp"] is None:
        return
    port = _net_targets.port(options["icmp"]["tcp_port"], "icmp.tcp_port")
    for text in options["icmp"]["targets"]:
        name = _agree(_net_targets.host(text, "icmp.targets"), options, "icmp.targets")
        look = partial(_net_icmp.check_icmp, name, port, _family(options))
        yield Check("icmp", name, look, required=options["icmp"]["required"])


def _tcp_checks(options: Options) -> t.Iterator[Check]:
    for text in options["tcp"]:
        where = _endpoint(text, options, "tcp")
        yield Check("tcp", str(where), partial(_check_tcp, where, _family(options)))


def _check_tcp(where: _net_targets.Endpoint, family: int, deadline: Deadline) -> Finding:
    peer, took = _net_socket.check_tcp(where, deadline, family)
    return Finding(f"{peer} accepts connections", "tcp", took)


def _http_checks(options: Options) -> t.Iterator[Check]:
    for wanted in options["http"]:
        target = _net_targets.url(wanted["url"], "http.url")
        _check_expectations(wanted, target)
        proxy = _proxy(wanted, target, "http")
        if proxy is None:
            _agree(target.endpoint.host, options, "http.url")
        context = _context(options, target, wanted["validate_certs"])
        expected = _net_http.Expectation(wanted["expect_status"], wanted["expect_body"], wanted["expect_issuer"])
        look = partial(_net_http.check_http, target, expected, proxy, context, _family(options))
        yield Check("http", target.text, look)


def _check_expectations(wanted: Options, target: _net_targets.Url) -> None:
    statuses, body = wanted["expect_status"], wanted["expect_body"]
    if not statuses or not all(100 <= status <= 599 for status in statuses):
        raise InputError(f"http.expect_status: {statuses} must be one or more numbers from 100 to 599 ({target.text})")
    if body is not None:
        if all(status in (204, 304) or status < 200 for status in statuses):
            raise InputError(f"http.expect_body: an answer with status {statuses} has no body ({target.text})")
        try:
            re.compile(body)
        except re.error as exc:
            raise InputError(f"http.expect_body: {body!r} is no regular expression: {exc} ({target.text})") from exc
    if wanted["expect_issuer"] is not None and (target.scheme != "https" or not wanted["validate_certs"]):
        raise InputError(f"http.expect_issuer: only a verified certificate of an https URL has one ({target.text})")


def _proxy(wanted: Options, target: _net_targets.Url, option: str) -> _net_http.Proxy | None:
    choice, user, password = wanted["proxy"], wanted["proxy_username"], wanted["proxy_password"]
    if choice in ("environment", "none"):
        if user is not None or password is not None:
            raise InputError(f"{option}.proxy_username: needs {option}.proxy to be the proxy's URL, not {choice!r}")
        return _net_http.proxy_of_environment(target) if choice == "environment" else None
    if (user is None) != (password is None):
        raise InputError(f"{option}: proxy_username and proxy_password are needed together")
    where = _net_targets.url(choice, f"{option}.proxy", ("http",)).endpoint
    return _net_http.Proxy(where, _net_http.basic(user, password) if user is not None else "")


def _context(options: Options, target: _net_targets.Url, verify: bool = True) -> ssl.SSLContext | None:
    return _tls(options, verify) if target.scheme == "https" else None


def _tls(options: Options, verify: bool = True) -> ssl.SSLContext:
    try:
        return _net_http.tls_context(options["ca_path"], verify)
    except OSError as exc:  # SSLError is one
        raise InputError(f"ca_path: {options['ca_path']} cannot be read as certificates: {exc}") from exc


def _apt_checks(options: Options) -> t.Iterator[Check]:
    apt = options["apt"]
    if apt is None:
        return
    repositories = [(each["uri"], each["suite"], each["keyring"]) for each in apt["repositories"]]
    if apt["configured"]:
        try:
            # apt is asked before anything runs: half of the time is left for what it says, and for all other checks.
            repositories += _net_apt.configured(options["timeout"] / 2)
        except Problem as problem:
            yield Check("apt", "configured repositories", partial(_net_apt.report, problem))
    elif not repositories:
        raise InputError("apt: nothing is asked: give repositories, or configured")
    for uri, suite, keyring in repositories:
        target = _net_targets.url(_net_apt.release_url(uri, suite), "apt.repositories.uri")
        if keyring is not None:
            _readable(keyring)
        proxy = _proxy(apt, target, "apt")
        look = partial(_net_apt.check_release, target, keyring, proxy, _context(options, target), _family(options))
        yield Check("apt", target.text, look)


def _readable(path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as exc:
        raise InputError(f"apt.repositories.keyring: {path}: {exc.strerror}") from exc


def _time_checks(options: Options) -> t.Iterator[Check]:
    wanted = options["time"]
    if wanted is None:
        return
    if wanted["max_offset"] <= 0:
        raise InputError(f"time.max_offset: {wanted['max_offset']} must be more than 0 seconds")
    if wanted["synchronised"]:
        yield Check("time", "this machine's clock", _net_time.check_synchronised)
    elif not wanted["servers"]:
        raise InputError("time: nothing is asked: give servers, or synchronised")
    for text in wanted["servers"]:
        where = _endpoint(text, options, "time.servers", 123)
        yield Check("time", str(where), partial(_net_time.check_server, where, wanted["max_offset"], _family(options)))


def _aws_checks(options: Options) -> t.Iterator[Check]:
    if options["imds"]:
        endpoint = _net_targets.url(options["imds_endpoint"], "imds_endpoint", ("http",)).text
        yield Check("imds", endpoint, partial(_net_aws.check_imds, endpoint))
    if options["ssm"] is not None:
        version = options["ssm"]["agent_version"] or _net_aws.agent_version()
        context = _tls(options)
        for where in _net_aws.ssm_endpoints(options["ssm"]["region"], version):
            yield Check("ssm", str(where), partial(_net_aws.check_ssm, where, context, _family(options)))
