# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the network's checks refuse, and what they make of what they are told; nothing is sent."""

from __future__ import annotations

import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import (
    _net_apt,
    _net_aws,
    _net_dns,
    _net_hints,
    _net_http,
    _net_icmp,
    _net_link,
    _net_plan,
    _net_run,
    _net_socket,
    _net_spec,
    _net_targets,
    _net_time,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Check, Finding, InputError, Problem

UTILS = Path(_net_plan.__file__).parent


def planned(**options: Any) -> list[tuple[str, str]]:
    return [(check.name, check.target) for check in _net_plan.plan(_net_spec.complete(options))]


def test_without_options_only_this_machine_is_looked_at() -> None:
    assert planned() == [("interface", "*"), ("default_route", "any")]


def http(**more: Any) -> dict[str, Any]:
    return {"http": [{"url": "http://a.example/", **more}]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"icpm": {"targets": ["a.example"]}}, "icpm: there is no such option; did you mean icmp?"),
        ({"zzz": 1}, "there are apt, ca_path"),
        ({"dns": {"name": ["a.example"]}}, "dns.name: there is no such option; did you mean names?"),
        ({"tcp": "a.example:1"}, "tcp: expected list"),
        ({"tcp": [5]}, "tcp[0]: expected str"),
        ({"timeout": True}, "timeout: expected float"),
        ({"http": [{}]}, "http[0].url: this option is required"),
        ([], "expected a mapping"),
        ({"timeout": 0}, "timeout: 0"),
        ({"retries": -1}, "retries: -1"),
        ({"parallel": 0}, "parallel: 0"),
        ({"fail_on": ["never"]}, "there are fail, warn, skip"),
        ({"tcp": ["a.example"]}, "has no port"),
        ({"tcp": ["a.example:0"]}, "from 1 to 65535"),
        ({"tcp": ["a.example:65536"]}, "from 1 to 65535"),
        ({"tcp": ["a.example:http"]}, "from 1 to 65535"),
        ({"tcp": ["2001:db8::1"]}, "has no port"),
        ({"tcp": ["[2001:db8::1:443"]}, "neither a host name nor"),
        ({"tcp": ["192.0.2.256:80"]}, "neither a host name nor"),
        ({"tcp": ["a b.example:80"]}, "neither a host name nor"),
        ({"tcp": [":80"]}, "neither a host name nor"),
        ({"tcp": ["b\u00fccher.example:80"]}, "write it in ASCII"),
        ({"icmp": {"targets": ["-x"]}}, "neither a host name nor"),
        ({"icmp": {"targets": ["a.example"], "tcp_port": 0}}, "icmp.tcp_port"),
        (http(url="ftp://a.example/"), "no URL of the form http or https"),
        (http(url="a.example/path"), "no URL of the form"),
        (http(url="http:///path"), "no URL of the form"),
        (http(url="http://a.example:99999/"), "no URL"),
        (http(url="http://a.example/\r\nX: y"), "control character"),
        (http(url="http://user:word@a.example/"), "user name or a password"),
        (http(url="http://[::1/"), "no URL"),
        (http(expect_status=[]), "one or more numbers"),
        (http(expect_status=[700]), "from 100 to 599"),
        (http(expect_status=[204], expect_body="x"), "has no body"),
        (http(expect_body="("), "no regular expression"),
        (http(expect_issuer="x"), "https URL"),
        (http(url="https://a.example/", expect_issuer="x", validate_certs=False), "only a verified certificate"),
        (http(proxy="socks5://a.example"), "no URL of the form http://"),
        (http(proxy="none", proxy_username="u", proxy_password="p"), "needs http.proxy to be the proxy's URL"),
        (http(proxy="http://p.example:1", proxy_username="u"), "are needed together"),
        ({**http(url="https://a.example/"), "ca_path": "/nowhere.pem"}, "ca_path: /nowhere.pem"),
        ({"expect": {"mtu": 10}}, "expect.mtu: 10"),
        ({"expect": {"mtu": 1000, "address_family": "ipv6"}}, "IPv6 1280"),
        ({"expect": {"address_family": "ipv5"}}, "there are ipv4, ipv6, dual"),
        ({"expect": {"address_family": "ipv6"}, "tcp": ["192.0.2.1:80"]}, "not of the family"),
        ({"expect": {"address_family": "ipv4"}, **http(url="http://[2001:db8::1]/")}, "not of the family"),
        ({"expect": {"mtu": 1500}, "mtu": {"targets": ["a.example"], "size": 9001}}, "more than the interfaces"),
        ({"mtu": {"targets": ["a.example"], "size": 100}}, "mtu.size: 100"),
        ({"dns": {}}, "dns: nothing is asked"),
        ({"dns": {"names": ["192.0.2.1"]}}, "nothing to resolve"),
        ({"dns": {"names": ["a.example"], "servers": ["ns.example"]}}, "must be an address"),
        ({"apt": {}}, "apt: nothing is asked"),
        ({"apt": {"repositories": [{"uri": "file:/srv", "suite": "x"}]}}, "no URL of the form"),
        (
            {"apt": {"repositories": [{"uri": "http://a.example", "suite": "x", "keyring": "/nowhere"}]}},
            "apt.repositories.keyring: /nowhere: No such file",
        ),
        ({"time": {"max_offset": 0}}, "time.max_offset"),
        ({"time": {"synchronised": False}}, "time: nothing is asked"),
        ({"imds": True, "imds_endpoint": "https://a.example"}, "imds_endpoint"),
        ({"ssm": {"region": "nowhere"}}, "no AWS region"),
        ({"ssm": {"region": "eu-central-1", "agent_version": "new"}}, "no version of the agent"),
        ({"interfaces": [""]}, "no name of an interface"),
    ],
)
def test_bad_input_is_refused_at_once(options: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        _net_plan.plan(_net_spec.complete(options))
    assert message in str(refused.value)


def test_every_kind_of_problem_has_a_hint_and_every_hint_a_problem() -> None:
    sources = [*UTILS.glob("_net_*.py"), *UTILS.glob("_boot_c*.py")]
    sources.remove(UTILS / "_net_hints.py")
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    used = {name for name in re.findall(r'"([a-z][a-z0-9]*(?:_[a-z0-9]+)*)"', text) if name in _net_hints.HINTS}
    assert set(_net_hints.HINTS) == used
    assert set(re.findall(r'Problem\(\s*"(\w+)"', text)) <= used
    page = (UTILS.parents[1] / "docs" / "net_validate.md").read_text(encoding="utf-8")
    assert [name for name, hint in _net_hints.HINTS.items() if f"| `{name}` | {hint} |\n" not in page] == []


def test_unexpected_error_of_one_check_is_told_and_costs_no_other() -> None:
    def broken(_deadline: object) -> Any:
        raise KeyError("field")

    good = Check("tcp", "good", lambda _deadline: Finding("fine", "tcp"))
    results = _net_run.run([Check("tcp", "bad", broken), good], timeout=5)
    assert [(result.status, result.error_class) for result in results] == [("fail", "internal"), ("pass", None)]
    assert "KeyError" in results[0].detail


def test_check_that_hangs_is_left_behind_at_the_deadline() -> None:
    def hang(deadline: Any) -> Finding:
        deadline.waiting_for = ("dns_timeout", "the resolver has not answered")
        time.sleep(30)
        return Finding("late", "dns")

    [result] = _net_run.run([Check("tcp", "x", hang)], timeout=0.2)
    assert (result.status, result.error_class, result.detail) == (
        "fail",
        "dns_timeout",
        "the resolver has not answered",
    )


def test_check_whose_turn_does_not_come_says_so() -> None:
    def slow(_deadline: object) -> Finding:
        time.sleep(1)
        return Finding("late", "tcp")

    results = _net_run.run([Check("tcp", "x", slow), Check("tcp", "y", slow)], timeout=0.2, parallel=1)
    assert [result.status for result in results] == ["fail", "fail"]
    assert "not begun" in results[1].detail and "not begun" not in results[0].detail


def link(**more: Any) -> dict[str, Any]:
    flags = ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"]
    addresses = [{"family": "inet", "local": "192.0.2.7", "scope": "global"}]
    return {"ifname": "eth0", "flags": flags, "mtu": 1500, "operstate": "UP", "addr_info": addresses, **more}


LINK_LOCAL = {"family": "inet6", "local": "fe80::1", "scope": "link"}
TENTATIVE = {"family": "inet6", "local": "2001:db8::7", "scope": "global", "tentative": True}
DOUBLE = {**TENTATIVE, "dadfailed": True}
FALLBACK = {"family": "inet", "local": "169.254.3.4", "scope": "global"}


@pytest.mark.parametrize(
    ("found", "family", "error"),
    [
        (link(), None, None),
        (link(operstate="UNKNOWN"), "ipv4", None),
        (link(), "ipv6", "no_address"),
        (link(), "dual", "no_address"),
        (link(flags=["BROADCAST"]), None, "interface_down"),
        (link(flags=["UP", "NO-CARRIER"]), None, "no_carrier"),
        (link(addr_info=[LINK_LOCAL, FALLBACK]), None, "no_address"),
        (link(addr_info=[TENTATIVE]), None, "no_address"),
        (link(addr_info=[DOUBLE]), None, "address_conflict"),
        (link(mtu=9001), None, "wrong_mtu"),
    ],
)
def test_interface(found: dict[str, Any], family: str | None, error: str | None) -> None:
    try:
        _net_link.judge_interface(found, family, 1500)
        seen = None
    except Problem as problem:
        seen = problem.error_class
    assert seen == error


DEFAULT = {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0", "flags": []}


@pytest.mark.parametrize(
    ("routes", "error"),
    [
        ([DEFAULT], None),
        ([DEFAULT, {**DEFAULT, "metric": 100}], None),
        ([DEFAULT, {**DEFAULT, "dev": "eth1"}], "ambiguous_route"),
        ([{**DEFAULT, "flags": ["dead", "linkdown"]}], "route_down"),
        ([{**DEFAULT, "flags": ["dead", "linkdown"]}, {**DEFAULT, "metric": 5}], None),
        ([{**DEFAULT, "type": "unreachable", "dev": "lo"}], "no_default_route"),
        ([{"dst": "default", "nexthops": [{"gateway": "192.0.2.1", "dev": "a", "weight": 1}], "flags": []}], None),
        ([], "no_default_route"),
    ],
)
def test_default_route(routes: list[dict[str, Any]], error: str | None) -> None:
    try:
        _net_link.judge_default_route(routes, "ipv4")
        seen = None
    except Problem as problem:
        seen = problem.error_class
    assert seen == error


# As BIND answers: www.example.com, compressed names, a CNAME before the addresses.
ANSWER = bytes.fromhex(
    "abcd8180000100020000000003777777076578616d706c6503636f6d0000010001"
    "c00c00050001000000050006036e7773c010c02d0001000100000005" + "0004c0000207"
)


def test_dns_answer_is_read() -> None:
    answer = _net_dns.parse(ANSWER, 0xABCD, _net_dns.A)
    assert answer is not None and (answer.rcode, answer.addresses) == (0, ["192.0.2.7"])
    assert _net_dns.parse(ANSWER, 1, _net_dns.A) is None
    assert _net_dns.parse(ANSWER, 0xABCD, _net_dns.AAAA).addresses == []  # type: ignore[union-attr]
    for end in range(4, len(ANSWER)):
        with pytest.raises(Problem):
            _net_dns.parse(ANSWER[:end], 0xABCD, _net_dns.A)


def test_configured_servers(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# comment\nsearch a.example\nnameserver 192.0.2.1\nsearch b.example c.example\nnameserver ::1\n")
    assert _net_dns.resolv_conf("nameserver", str(file)) == ["192.0.2.1", "::1"]
    assert _net_dns.resolv_conf("search", str(file)) == ["b.example", "c.example"]


def test_checksum_is_that_of_rfc_1071() -> None:
    assert _net_icmp.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    assert _net_icmp.checksum(b"\x01") == 0xFEFF


def sntp(leap: int = 0, stratum: int = 2, ahead: float = 0.0, now: float = 1.8e9) -> tuple[bytes, bytes]:
    request = bytes([0x23]) + bytes(39) + _net_time._ntp(now)
    stamp = _net_time._ntp(now + ahead)
    return bytes([leap << 6 | 0x24, stratum]) + b"\0" * 10 + b"RATE" + bytes(8) + request[40:48] + stamp * 2, request


@pytest.mark.parametrize("now", [1.8e9, 2085978496 + 1e6], ids=["era 0", "era 1"])
def test_offset_of_a_clock(now: float) -> None:
    data, request = sntp(ahead=-7200.5, now=now)
    assert _net_time.offset_of(data, now, now, request) == pytest.approx(-7200.5, abs=0.001)


def test_time_server_that_does_not_know() -> None:
    for leap, stratum, words in ((3, 2, "stratum 2"), (0, 0, "RATE"), (0, 16, "stratum 16")):
        data, request = sntp(leap, stratum)
        with pytest.raises(Problem, match=words):
            _net_time.offset_of(data, 1.8e9, 1.8e9, request)
    data, request = sntp()
    for foreign in (data[:40], b"\x23" + data[1:], data[:24] + bytes(8) + data[32:]):
        with pytest.raises(ValueError):
            _net_time.offset_of(foreign, 1.8e9, 1.8e9, request)


def test_kernel_s_view_of_the_clock() -> None:
    state, error = _net_time.kernel_state()
    assert 0 <= state <= 5 and error >= 0
    assert "0.016" in _net_time.judge_kernel(0, 16000, False)
    with pytest.raises(Problem, match="not synchronised"):
        _net_time.judge_kernel(_net_time.TIME_ERROR, 16000000, False)


def release(date: str, until: str | None = None) -> str:
    more = f"Valid-Until: {until}\n" if until else ""
    return f"-----BEGIN PGP SIGNED MESSAGE-----\n\nOrigin: Debian\nSuite: stable\nDate: {date}\n{more}SHA256:\n abc\n"


NOW = 1795744800.0  # Fri, 27 Nov 2026 02:00:00 UTC


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (release("Fri, 27 Nov 2026 01:00:00 UTC"), None),
        (release("Fri, 27 Nov 2026 02:00:05 UTC", "Fri, 04 Dec 2026 02:00:00 UTC"), None),
        (release("Fri, 27 Nov 2026 02:01:00 UTC"), "release_not_yet_valid"),
        (release("Fri, 20 Nov 2026 02:00:00 UTC", "Fri, 27 Nov 2026 01:59:59 UTC"), "release_expired"),
        (release("yesterday"), "release_malformed"),
        ("<html>Origin: x</html>", "release_malformed"),
        ("", "release_malformed"),
    ],
)
def test_release_file(text: str, error: str | None) -> None:
    try:
        _net_apt.judge(text, NOW, "it")
        seen = None
    except Problem as problem:
        seen = problem.error_class
    assert seen == error


@pytest.mark.parametrize(
    ("environment", "target", "expected"),
    [
        ({"http_proxy": "http://p.example:8"}, "http://a.example/", "proxy p.example:8"),
        ({"http_proxy": "p.example:8"}, "http://a.example/", "proxy p.example:8"),
        ({"http_proxy": "http://p.example:8"}, "https://a.example/", None),
        ({"https_proxy": "http://p.example:8", "no_proxy": "a.example"}, "https://a.example/", None),
        ({"HTTPS_PROXY": "http://p.example:8", "no_proxy": "b.example"}, "https://a.example/", "proxy p.example:8"),
        ({"http_proxy": "http://u:w%20d@p.example:8/"}, "http://a.example/", "proxy p.example:8"),
        ({}, "http://a.example/", None),
    ],
)
def test_proxy_of_the_environment(environment: dict[str, str], target: str, expected: str | None) -> None:
    found = _net_http.proxy_of_environment(_net_targets.url(target, "url"), environment)
    assert (found.method if found else None) == expected
    if found and "@" in environment.get("http_proxy", ""):
        assert found.authorization == _net_http.basic("u", "w d")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ssl.SSLError(1, "[SSL] wrong version number"), "tls_error"),
        (PermissionError(1, "Operation not permitted"), "local_firewall"),
        (socket.timeout("timed out"), "timeout"),
        (TimeoutError("no time left"), "timeout"),
        (ConnectionResetError(104, "Connection reset by peer"), "closed"),
    ],
)
def test_errors_of_the_system(error: OSError, kind: str) -> None:
    assert _net_socket.problem_of(error, "it", "tcp").error_class == kind


def test_endpoints_of_ssm() -> None:
    names = [str(each) for each in _net_aws.ssm_endpoints("cn-north-1", "3.3.39.0")]
    assert names == [f"{name}.cn-north-1.amazonaws.com.cn:443" for name in ("ssm", "ssmmessages", "ec2messages")]
    assert len(_net_aws.ssm_endpoints("us-gov-west-1", "3.3.40.0")) == 2


def test_url_is_taken_apart() -> None:
    found = _net_targets.url("https://[2001:db8::1]:8443/a?b=c", "url")
    assert (found.endpoint.host, found.endpoint.port, found.path) == ("2001:db8::1", 8443, "/a?b=c")
    assert found.authority == "[2001:db8::1]:8443"
    assert _net_targets.url("http://a.example", "url").authority == "a.example"
