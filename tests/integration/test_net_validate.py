# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""net_validate in networks that are broken on purpose, as tests/support/broken_network.py lays them out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import documented, network
from ansible_collections.goldsmith.images.tests.support.broken_network import SERVER, Net
from ansible_collections.goldsmith.images.tests.support.network import Namespace

pytestmark = network.needed

NOTHING_LOCAL = {"interfaces": [], "default_route": False}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    with ExitStack() as stack:
        found = Net(tmp_path_factory.mktemp("net"), stack)
        found.lay_cables()
        found.start_servers()
        yield found


def outcomes(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(entry["name"], entry["target"]): entry for entry in report["checks"]}


def says(entry: dict[str, Any]) -> tuple[str, str | None]:
    return entry["status"], entry["error_class"]


# One run for all that can be seen from the client: checks run side by side.
SURVEY: dict[tuple[str, str], tuple[str, str | None]] = {
    ("interface", "*"): ("pass", None),
    ("interface", "eth0"): ("pass", None),
    ("interface", "ens*"): ("fail", "no_interface"),
    ("default_route", "any"): ("pass", None),
    ("mtu", SERVER): ("pass", None),
    ("mtu", "203.0.113.2"): ("warn", "mtu_small"),
    ("mtu", "198.51.100.3:80"): ("pass", None),
    ("mtu", "198.51.100.3"): ("warn", "mtu_unknown"),
    ("mtu", "[2001:db8:2::2]"): ("pass", None),
    ("dns", "www.example.test by this machine's resolver"): ("pass", None),
    ("dns", f"www.example.test by {SERVER}:53"): ("pass", None),
    ("dns", "www.example.test by [2001:db8:2::2]:53"): ("pass", None),
    ("dns", f"big.example.test by {SERVER}:53"): ("pass", None),
    ("dns", f"no.example.test by {SERVER}:53"): ("fail", "dns_nxdomain"),
    ("dns", "no.example.test by this machine's resolver"): ("fail", "dns_nxdomain"),
    ("dns", f"www.example.test by {SERVER}:5302"): ("fail", "dns_server_failure"),
    ("dns", f"www.example.test by {SERVER}:5303"): ("fail", "dns_malformed"),
    ("dns", f"www.example.test by {SERVER}:5304"): ("fail", "dns_timeout"),
    ("dns", f"www.example.test by {SERVER}:5399"): ("fail", "refused"),
    ("dns_hijack", "this machine's resolver"): ("pass", None),
    ("dns_hijack", f"{SERVER}:53"): ("pass", None),
    ("dns_hijack", f"{SERVER}:5301"): ("fail", "dns_hijack"),
    ("icmp", SERVER): ("pass", None),
    ("icmp", "2001:db8:2::2"): ("pass", None),
    ("icmp", "198.51.100.3"): ("warn", "icmp_no_answer"),
    ("icmp", "198.18.1.1"): ("warn", "icmp_no_answer"),
    ("icmp", "198.18.2.1"): ("warn", "host_unreachable"),
    ("tcp", f"{SERVER}:80"): ("pass", None),
    ("tcp", "[2001:db8:2::2]:80"): ("pass", None),
    ("tcp", f"{SERVER}:4"): ("fail", "refused"),
    ("tcp", f"{SERVER}:8443"): ("fail", "filtered"),
    ("tcp", f"{SERVER}:8442"): ("fail", "host_unreachable"),
    ("tcp", "198.18.1.1:80"): ("fail", "filtered"),
    ("tcp", "198.18.2.1:80"): ("fail", "host_unreachable"),
    ("tcp", "192.0.2.99:80"): ("fail", "host_unreachable"),
    ("tcp", "four.example.test:80"): ("pass", None),
    ("http", f"http://{SERVER}/hello"): ("pass", None),
    ("http", "http://[2001:db8:2::2]/hello"): ("pass", None),
    ("http", f"http://{SERVER}/generate_204"): ("pass", None),
    ("http", f"http://{SERVER}/missing"): ("fail", "http_status"),
    ("http", f"http://{SERVER}/moved"): ("fail", "http_status"),
    ("http", f"http://{SERVER}:8080/generate_204"): ("fail", "captive_portal"),
    ("http", f"http://{SERVER}:8081/generate_204"): ("fail", "captive_portal"),
    ("http", f"http://{SERVER}/html"): ("fail", "captive_portal"),
    ("http", f"http://{SERVER}:4/"): ("fail", "refused"),
    ("http", f"http://{SERVER}:9001/"): ("fail", "timeout"),
    ("http", f"http://{SERVER}:9005/"): ("fail", "timeout"),
    ("http", f"http://{SERVER}:9002/"): ("fail", "http_malformed"),
    ("http", f"http://{SERVER}:9006/"): ("fail", "http_malformed"),
    ("http", "https://www.example.test/hello"): ("pass", None),
    ("http", "https://four.example.test/hello"): ("fail", "tls_name"),
    ("http", "https://www.example.test:8444/"): ("fail", "tls_expired"),
    ("http", "https://www.example.test:8445/"): ("fail", "tls_not_yet_valid"),
    ("http", "https://www.example.test:8446/"): ("fail", "tls_untrusted"),
    ("http", f"https://{SERVER}:80/"): ("fail", "tls_error"),
    ("apt", f"http://{SERVER}/debian/dists/good/InRelease"): ("pass", None),
    ("apt", f"http://{SERVER}/debian/dists/future/InRelease"): ("fail", "release_not_yet_valid"),
    ("apt", f"http://{SERVER}/debian/dists/expired/InRelease"): ("fail", "release_expired"),
    ("apt", f"http://{SERVER}/debian/dists/page/InRelease"): ("fail", "release_malformed"),
    ("apt", f"http://{SERVER}/debian/dists/none/InRelease"): ("fail", "http_status"),
    ("apt", f"http://{SERVER}:8080/debian/dists/good/InRelease"): ("fail", "captive_portal"),
    ("time", f"{SERVER}:123"): ("pass", None),
    ("time", f"{SERVER}:1230"): ("fail", "clock_skew"),
    ("time", f"{SERVER}:1231"): ("fail", "refused"),
    ("imds", "http://169.254.169.254"): ("pass", None),
    ("ssm", "ssm.eu-central-1.amazonaws.com:443"): ("pass", None),
    ("ssm", "ssmmessages.eu-central-1.amazonaws.com:443"): ("pass", None),
    ("ssm", "ec2messages.eu-central-1.amazonaws.com:443"): ("pass", None),
}


def targets(name: str) -> list[str]:
    return [target for kind, target in SURVEY if kind == name]


def http(target: str, **more: Any) -> dict[str, Any]:
    expected = {"204": {"expect_status": [204]}, "html": {"expect_body": "^hello"}, "hello": {"expect_body": "^hello"}}
    return {
        "url": target,
        "proxy": "none",
        **next((each for key, each in expected.items() if key in target), {}),
        **more,
    }


def survey_options(net: Net) -> dict[str, Any]:
    releases = [target.split("/dists/") for target in targets("apt")]
    return {
        "interfaces": targets("interface"),
        "mtu": {"targets": targets("mtu")},
        "dns": {
            "names": ["www.example.test", "no.example.test", "big.example.test"],
            "servers": [SERVER, "2001:db8:2::2", *(f"{SERVER}:{port}" for port in (5301, 5302, 5303, 5304, 5399))],
            "hijack_probe": True,
        },
        "icmp": {"targets": targets("icmp")},
        "tcp": targets("tcp"),
        "http": [http(target) for target in targets("http")],
        "apt": {"repositories": [{"uri": uri, "suite": rest.split("/")[0]} for uri, rest in releases], "proxy": "none"},
        "time": {"synchronised": False, "servers": targets("time")},
        "imds": True,
        "ssm": {"region": "eu-central-1", "agent_version": "3.2.0.0"},
        "ca_path": str(net.folder / "nginx" / "Test-authority.pem"),
        "parallel": 200,
        "timeout": 4,
    }


@pytest.fixture(scope="module")
def survey(net: Net) -> dict[tuple[str, str], dict[str, Any]]:
    return outcomes(net.client.validate(**survey_options(net)))


@pytest.mark.parametrize(("key", "expected"), SURVEY.items(), ids=[f"{name} {target}" for name, target in SURVEY])
def test_seen_from_the_client(
    survey: dict[tuple[str, str], dict[str, Any]], key: tuple[str, str], expected: tuple[str, str | None]
) -> None:
    assert says(survey[key]) == expected, survey[key]


def test_all_of_it_took_no_longer_than_the_deadline(survey: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert max(entry["latency_ms"] for entry in survey.values()) < 6000


def test_a_problem_has_a_hint_and_says_what_was_found(survey: dict[tuple[str, str], dict[str, Any]]) -> None:
    for entry in survey.values():
        assert entry["detail"], entry
        assert bool(entry["hint"]) == (entry["status"] != "pass"), entry


def test_methods_are_recorded(survey: dict[tuple[str, str], dict[str, Any]]) -> None:
    def method(name: str, target: str) -> str:
        return survey[name, target]["method"]

    assert method("icmp", SERVER) == "icmp_raw"
    assert method("icmp", "198.51.100.3") == "tcp"
    assert method("mtu", SERVER) == "icmp_raw"
    assert method("mtu", "198.51.100.3:80") == "tcp_payload"
    assert method("dns", f"www.example.test by {SERVER}:53") == "udp"
    assert method("dns", f"big.example.test by {SERVER}:53") == "tcp"
    assert method("dns", "www.example.test by this machine's resolver") == "getaddrinfo"
    assert method("http", f"http://{SERVER}/hello") == "direct"
    assert method("time", f"{SERVER}:1230") == "sntp"


def test_details_name_what_was_found(survey: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert "1280" in survey["mtu", "203.0.113.2"]["detail"]
    assert "3600" in survey["time", f"{SERVER}:1230"]["detail"] or "3599" in survey["time", f"{SERVER}:1230"]["detail"]
    assert "198.51.100.9" in survey["dns_hijack", f"{SERVER}:5301"]["detail"]
    assert "http://portal.example.test/login" in survey["http", f"http://{SERVER}:8080/generate_204"]["detail"]
    assert "Test authority" in survey["http", "https://www.example.test/hello"]["detail"]


def one(report: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return report["checks"][number]


def test_path_that_loses_large_packets_without_a_word(net: Net) -> None:
    net.router.nft("chain out { type filter hook output priority 0; icmp type destination-unreachable drop; }")
    try:
        options = {"mtu": {"targets": ["203.0.113.2", "203.0.113.3:80"]}, "timeout": 4, **NOTHING_LOCAL}
        by_icmp, by_tcp = net.client.validate(**options)["checks"]
        wanted = net.client.validate(**{**options, "mtu": {"targets": ["203.0.113.2"], "size": 1280}})
    finally:
        net.router.nft("")
    assert says(by_icmp) == ("fail", "mtu_black_hole"), by_icmp
    assert "1280" in by_icmp["detail"]
    assert (*says(by_tcp), by_tcp["method"]) == ("fail", "mtu_black_hole", "tcp_payload"), by_tcp
    # What vanishes is not what was wanted.
    assert says(one(wanted)) == ("pass", None), wanted


def test_wanted_size_that_the_path_does_not_carry(net: Net) -> None:
    options = {"timeout": 4, **NOTHING_LOCAL}
    report = net.client.validate(mtu={"targets": ["203.0.113.2"], "size": 1400}, **options)
    assert says(one(report)) == ("fail", "mtu_small"), report
    report = net.client.validate(mtu={"targets": [SERVER], "size": 9001}, **options)
    assert says(one(report)) == ("fail", "mtu_small"), report
    assert "own MTU" in one(report)["detail"]


def test_machine_without_a_network(net: Net) -> None:
    report = net.island.validate(
        tcp=["192.0.2.2:80", "[2001:db8::1]:80"],
        icmp={"targets": ["192.0.2.2"]},
        mtu={"targets": ["192.0.2.2"]},
        dns={"names": ["www.example.test"], "servers": ["192.0.2.2"]},
        http=[{"url": "http://192.0.2.2/"}],
        time={"synchronised": False, "servers": ["192.0.2.2"]},
        timeout=3,
    )
    found = [(entry["name"], *says(entry)) for entry in report["checks"]]
    assert found == [
        ("interface", "fail", "no_interface"),
        ("default_route", "fail", "no_default_route"),
        ("mtu", "fail", "no_route"),
        ("dns", "fail", found[3][2]),  # the resolver's own words: it depends on /etc/resolv.conf of this machine
        ("dns", "fail", "no_route"),
        ("icmp", "warn", "no_route"),
        ("tcp", "fail", "no_route"),
        ("tcp", "fail", "no_route"),
        ("http", "fail", "no_route"),
        ("time", "fail", "no_route"),
    ]


@pytest.mark.parametrize(
    ("set_up", "error"),
    [
        (["link set {n} down"], "interface_down"),
        (["link set {n} up"], "no_address"),
        (["link set {n} up", "address add 169.254.7.7/16 dev {n}"], "no_address"),
        (["link set {n} up", "address add 192.0.2.7/24 dev {n}"], "wrong_mtu"),
    ],
)
def test_interface_that_is_not_usable(net: Net, set_up: list[str], error: str) -> None:
    net.island.ip("link add dum0 type veth peer name dum1")
    try:
        net.island.ip("link set dum1 up")
        for line in set_up:
            net.island.ip(line.format(n="dum0"))
        options = {"interfaces": ["dum0"], "default_route": False, "expect": {"mtu": 9001, "address_family": "ipv4"}}
        assert says(one(net.island.validate(**options))) == ("fail", error)
    finally:
        net.island.ip("link delete dum0")


def test_link_without_carrier(net: Net) -> None:
    net.island.ip("link add dum0 type veth peer name dum1")
    try:
        net.island.ip("link set dum0 up")
        report = net.island.validate(interfaces=["dum0"], default_route=False)
        assert says(one(report)) == ("fail", "no_carrier"), report
    finally:
        net.island.ip("link delete dum0")


def test_two_default_routes_of_the_same_metric(net: Net) -> None:
    net.client.ip("route append default via 192.0.2.254")
    try:
        report = net.client.validate(interfaces=[])
        assert says(one(report)) == ("warn", "ambiguous_route"), report
        assert report["ok"] and report["degraded"]
    finally:
        net.client.ip("route delete default via 192.0.2.254")


def test_machine_with_ipv6_only(net: Net) -> None:
    report = net.six.validate(
        expect={"address_family": "ipv6"},
        tcp=["[2001:db8:2::2]:80", "www.example.test:80", "four.example.test:80"],
        icmp={"targets": ["2001:db8:2::2"]},
        dns={"names": ["www.example.test", "four.example.test"]},
        mtu={"targets": ["2001:db8:2::2"]},
        timeout=4,
    )
    seen = outcomes(report)
    bad = {key: says(entry) for key, entry in seen.items() if entry["status"] != "pass"}
    assert bad == {
        ("tcp", "four.example.test:80"): ("fail", "dns_no_data"),
        ("dns", "four.example.test by this machine's resolver"): ("fail", "dns_no_data"),
        ("dns", "four.example.test by [2001:db8:2::2]:53"): ("fail", "dns_no_data"),
    }
    dual = net.six.validate(expect={"address_family": "dual"}, timeout=4)
    assert [says(entry) for entry in dual["checks"]] == [("fail", "no_address"), ("fail", "no_default_route")]
    no_way = net.six.validate(tcp=[f"{SERVER}:80"], timeout=4, **NOTHING_LOCAL)
    assert says(one(no_way)) == ("fail", "no_route")


def test_only_the_proxy_leads_out(net: Net) -> None:
    page, secure = f"http://{SERVER}/hello", "https://www.example.test/hello"
    proxies = {"proxy": "http://192.0.3.1:3128"}, {"proxy": "http://192.0.3.1:3129"}, {"proxy": "http://192.0.3.1:1"}
    login = {"proxy_username": "user", "proxy_password": "secret-word"}
    report = net.inside.validate(
        http=[
            {"url": page, "proxy": "none"},
            {"url": page, **proxies[0]},
            {"url": secure, **proxies[0], "expect_issuer": "Test authority"},
            {"url": page, **proxies[1]},
            {"url": secure, **proxies[1]},
            {"url": secure, **proxies[1], **login},
            {"url": page, **proxies[2]},
            {"url": "https://www.example.test:8444/", **proxies[0]},
            {"url": page},
            {"url": "http://198.51.100.3/hello"},
        ],
        ca_path=str(net.folder / "nginx" / "Test-authority.pem"),
        timeout=5,
        env={"http_proxy": "http://user:secret-word@192.0.3.1:3129", "no_proxy": "198.51.100.3"},
        **NOTHING_LOCAL,
    )
    assert [(*says(entry), entry["method"]) for entry in report["checks"]] == [
        ("fail", "no_route", "direct"),
        ("pass", None, "proxy 192.0.3.1:3128"),
        ("pass", None, "proxy 192.0.3.1:3128"),
        ("fail", "proxy_auth", "proxy 192.0.3.1:3129"),
        ("fail", "proxy_auth", "proxy 192.0.3.1:3129"),
        ("pass", None, "proxy 192.0.3.1:3129"),
        ("fail", "proxy_unreachable", "proxy 192.0.3.1:1"),
        ("fail", "proxy_refused", "proxy 192.0.3.1:3128"),
        ("pass", None, "proxy 192.0.3.1:3129"),
        ("fail", "no_route", "direct"),
    ], report
    assert "secret-word" not in str(report)


def test_inspecting_proxy_is_told_by_its_certificates(net: Net) -> None:
    options = {"url": "https://www.example.test:8446/", "expect_status": [200, 404]}
    report = net.client.validate(
        http=[
            {**options, "expect_issuer": "Inspecting"},
            {**options, "url": "https://www.example.test/hello", "expect_issuer": "Somebody else"},
        ],
        ca_path=str(net.folder / "nginx" / "both.pem"),
        **NOTHING_LOCAL,
    )
    assert [says(entry) for entry in report["checks"]] == [("pass", None), ("fail", "tls_issuer")], report


NO_RAW = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def test_without_raw_sockets(net: Net) -> None:
    options = {"icmp": {"targets": [SERVER, "2001:db8:2::2"], "required": True}, "timeout": 4, **NOTHING_LOCAL}
    # The group range of a new namespace is empty: nobody may, and the program ping may not get its capability either.
    report = net.client.validate(*NO_RAW, **options)
    assert [(*says(entry), entry["method"]) for entry in report["checks"]] == [("pass", None, "tcp")] * 2, report
    assert "not permitted" in one(report)["detail"]
    dead = net.client.validate(*NO_RAW, **{**options, "icmp": {"targets": ["198.18.1.1"], "required": True}})
    assert says(one(dead)) == ("fail", "icmp_not_permitted"), dead
    path = net.client.validate(*NO_RAW, mtu={"targets": [SERVER, f"{SERVER}:80"]}, timeout=4, **NOTHING_LOCAL)
    assert [says(entry) for entry in path["checks"]] == [("warn", "mtu_unknown"), ("pass", None)], path
    # A user like any other gets it from the program.
    python = system_python()
    if python:
        report = net.client.validate(*NOBODY, python=python, **options)
        assert [(*says(entry), entry["method"]) for entry in report["checks"]] == [("pass", None, "ping")] * 2, report
    # And where the group range allows it, nobody needs a privilege.
    net.client.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 65535")
    try:
        report = net.client.validate(*NO_RAW, mtu={"targets": ["203.0.113.2"]}, **options)
        assert [entry["method"] for entry in report["checks"]] == ["icmp_dgram"] * 3, report
        assert [says(entry) for entry in report["checks"]] == [("warn", "mtu_small"), ("pass", None), ("pass", None)]
    finally:
        net.client.run("sysctl", "-qw", "net.ipv4.ping_group_range=1 0")


def system_python() -> str | None:
    """A Python that another user may run, and this checkout where it may read it."""
    path = "/usr/bin/python3"
    probe = subprocess.run([*NOBODY, path, "-c", f"open({__file__!r})"], capture_output=True, check=False)
    return path if probe.returncode == 0 else None


@pytest.mark.parametrize("port", [9002, 9003, 9004], ids=["head", "body", "chunks"])
def test_server_that_never_stops_sending(net: Net, port: int) -> None:
    options: list[dict[str, Any]] = [{"url": f"http://{SERVER}:{port}/", "expect_body": "never"}] * 8
    report = net.client.validate(http=options, timeout=15, **NOTHING_LOCAL)
    # It was the limit that ended it, not the deadline.
    assert {says(entry) for entry in report["checks"]} == {("fail", "http_malformed" if port == 9002 else "http_body")}
    assert report["rss_mb"] < 100, report["rss_mb"]


def test_expression_that_never_ends_holds_up_nobody(net: Net) -> None:
    endless = {"url": f"http://{SERVER}:9003/", "expect_body": "(.+)+(.+)+ nope"}
    report = net.client.validate(http=[endless], tcp=[f"{SERVER}:9003"], timeout=6, **NOTHING_LOCAL)
    assert sorted(says(entry) for entry in report["checks"]) == [("fail", "http_body"), ("pass", None)]
    assert "is not done with the body" in str(report["checks"])


def test_release_file_that_never_ends(net: Net) -> None:
    repository = {"uri": f"http://{SERVER}:9003/debian", "suite": "good"}
    report = net.client.validate(apt={"repositories": [repository]}, timeout=15, **NOTHING_LOCAL)
    assert says(one(report)) == ("fail", "release_malformed")
    assert report["rss_mb"] < 100, report["rss_mb"]


def test_checks_run_side_by_side(net: Net) -> None:
    # The server answers nobody before twelve wait at the same time.
    options = {"http": [{"url": f"http://{SERVER}:9007/", "expect_body": "ok"}] * 12, "timeout": 8, **NOTHING_LOCAL}
    assert net.client.validate(**options)["ok"]


def test_no_more_run_at_once_than_allowed(net: Net) -> None:
    options = {"http": [{"url": f"http://{SERVER}:9007/"}] * 12, "parallel": 11, "timeout": 2, **NOTHING_LOCAL}
    report = net.client.validate(**options)
    assert report["summary"]["fail"] == 12, report


def test_service_that_comes_up_late_is_found_by_a_retry(net: Net) -> None:
    code = f"import socket, time; time.sleep(1); s = socket.create_server(('{SERVER}', 9100)); time.sleep(20)"
    late = net.server.start(sys.executable, "-I", "-c", code)
    report = net.client.validate(tcp=[f"{SERVER}:9100", f"{SERVER}:4"], retries=9, timeout=5, **NOTHING_LOCAL)
    late.terminate()
    assert says(one(report)) == ("pass", None)
    assert one(report)["attempts"] > 1
    assert (*says(one(report, 1)), one(report, 1)["attempts"]) == ("fail", "refused", 10)


def test_metadata_service_that_is_not_as_it_should_be(net: Net) -> None:
    for port, expected in (
        (81, ("warn", "imds_v1")),
        (82, ("fail", "imds_disabled")),
        (83, ("fail", "imds_unreachable")),
    ):
        report = net.client.validate(imds=True, imds_endpoint=f"http://169.254.169.254:{port}", **NOTHING_LOCAL)
        assert says(one(report)) == expected
    # Whatever proxy there is, it is not asked.
    report = net.client.validate(imds=True, env={"http_proxy": "http://192.0.2.1:3128"}, **NOTHING_LOCAL)
    assert says(one(report)) == ("pass", None)
    here = {"imds_endpoint": f"http://{SERVER}", "imds": True}
    assert says(one(net.client.validate(**here, **NOTHING_LOCAL))) == ("fail", "imds_error")


def test_endpoints_of_the_agent(net: Net) -> None:
    options = {"ca_path": str(net.folder / "nginx" / "Test-authority.pem"), **NOTHING_LOCAL}
    new = net.client.validate(ssm={"region": "eu-central-1", "agent_version": "3.3.40.0"}, **options)
    assert [entry["target"].split(".")[0] for entry in new["checks"]] == ["ssm", "ssmmessages"]
    assert new["ok"]
    # Another region: the names lead to a server that has no certificate for them.
    other = net.client.validate(ssm={"region": "eu-west-1", "agent_version": "3.3.40.0"}, **options)
    assert {says(entry) for entry in other["checks"]} == {("fail", "tls_name")}


def test_search_domain_that_makes_a_name_work(net: Net) -> None:
    net.client.file("/etc/resolv.conf", f"search test\nnameserver {SERVER}\noptions timeout:1 attempts:1 ndots:2\n")
    try:
        report = net.client.validate(dns={"names": ["www.example"], "servers": []}, timeout=4, **NOTHING_LOCAL)
    finally:
        net.client.run("umount", "/etc/resolv.conf")
    assert says(one(report)) == ("warn", "dns_search_domain"), report


def test_hijacked_resolver(net: Net) -> None:
    net.client.file("/etc/resolv.conf", "nameserver 198.51.100.3\noptions timeout:1 attempts:1\n")
    net.filter_server(
        "chain pre { type nat hook prerouting priority 0; ip daddr 198.51.100.3 udp dport 53 redirect to :5301; }"
    )
    try:
        report = net.client.validate(dns={"hijack_probe": True}, timeout=4, **NOTHING_LOCAL)
    finally:
        net.client.run("umount", "/etc/resolv.conf")
        net.filter_server()
    assert says(one(report)) == ("fail", "dns_hijack"), report


def test_name_server_that_does_not_answer_ends_at_the_deadline(net: Net) -> None:
    net.client.file("/etc/resolv.conf", "nameserver 198.18.1.1\noptions timeout:20 attempts:3\n")
    try:
        report = net.client.validate(tcp=["www.example.test:80"], timeout=1, **NOTHING_LOCAL)
    finally:
        net.client.run("umount", "/etc/resolv.conf")
    assert says(one(report)) == ("fail", "dns_timeout"), report
    assert "www.example.test" in one(report)["detail"]


# Modules run in a namespace, and how much memory each needed is written down.
INTERPRETER = """\
#!{python}
import os, resource, subprocess, sys
command = ["nsenter", "--target={pid}", "--net", "--mount", "--", "{python}", *sys.argv[1:]]
done = subprocess.run(command)
with open("{log}", "a") as log:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, file=log)
sys.exit(done.returncode)
"""


def inside(machine: Namespace, folder: Path) -> str:
    """An interpreter for modules that runs them in a namespace."""
    path = folder / "python"
    path.write_text(INTERPRETER.format(python=sys.executable, pid=machine.pid, log=folder / "memory"))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("check", [False, True])
def test_module(net: Net, run_module: Any, tmp_path: Path, check: bool) -> None:
    options = {"tcp": [f"{SERVER}:80", f"{SERVER}:4"], "timeout": 5}
    result = run_module("net_validate", _python=inside(net.client, tmp_path), _check=check, **options)
    assert not result["failed"], result
    documented.check_returned("net_validate", result)
    assert result["changed"] is False
    assert (result["ok"], result["summary"]) == (False, {"pass": 3, "warn": 0, "fail": 1, "skip": 0})


def test_module_fails_if_asked_to(net: Net, run_module: Any, tmp_path: Path) -> None:
    python = inside(net.client, tmp_path)
    options = {"tcp": [f"{SERVER}:4"], "timeout": 5, **NOTHING_LOCAL}
    result = run_module("net_validate", _python=python, fail_on=["fail"], **options)
    documented.check_returned("net_validate", result)
    assert result["failed"]
    assert f"FAIL tcp {SERVER}:4" in result["msg"] and "refused" in result["msg"]
    assert one(result)["hint"] in result["msg"]
    assert not run_module("net_validate", _python=python, fail_on=["warn"], **options)["failed"]


def test_module_stays_small_and_ends_whatever_a_server_does(net: Net, run_module: Any, tmp_path: Path) -> None:
    urls = [{"url": f"http://{SERVER}:{port}/", "expect_body": "never"} for port in (9001, 9002, 9003, 9004, 9005) * 4]
    result = run_module("net_validate", _python=inside(net.client, tmp_path), http=urls, timeout=4, **NOTHING_LOCAL)
    assert result["summary"]["fail"] == 20
    assert result["elapsed_ms"] < 6000
    peaks = [int(line) for line in (tmp_path / "memory").read_text().split()]
    assert 20 < max(peaks) < 100, peaks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"icpm": {"targets": ["a.example"]}}, "icpm"),
        ({"http": [{"url": "http://a.example:99999/"}]}, "http.url: 'http://a.example:99999/' is no URL"),
    ],
)
def test_module_refuses_bad_input(
    net: Net, run_module: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    result = run_module("net_validate", _python=inside(net.island, tmp_path), **options)
    assert result["failed"] and message in result["msg"], result
    assert "checks" not in result


def test_nothing_is_sent_to_anybody_who_is_not_named(net: Net) -> None:
    # All IPv4 packets that leave the machine are counted, and separately those to the one host that is named.
    rule = "chain out {{ type filter hook output priority 0; meta nfproto ipv4 {} counter; }}"

    def sent_elsewhere(to: str, **options: Any) -> int:
        net.client.nft(rule.format(to))
        net.client.validate(**options)
        text = net.client.run("nft", "list", "table", "inet", "test")
        net.client.nft("")
        return int(text.partition("packets ")[2].split()[0])

    assert sent_elsewhere("") == 0
    options: dict[str, Any] = {
        "http": [
            {"url": f"http://{SERVER}:8080/", "proxy": "none"},
            {"url": f"http://{SERVER}/moved", "proxy": "none"},
        ],
        "tcp": [f"{SERVER}:80"],
        "icmp": {"targets": [SERVER]},
        "dns": {"names": ["www.example.test"], "servers": [SERVER]},
        "timeout": 3,
    }
    assert sent_elsewhere(f"ip daddr {SERVER}", **options) > 0
    assert sent_elsewhere(f"ip daddr != {SERVER}", **options) == 0


def test_examples(net: Net) -> None:
    # In a machine that has no network: they are taken, and everything is found wrong.
    tasks = [*documented.section("net_validate", "EXAMPLES"), *sum(documented.blocks("net_validate.md"), [])]
    runs = [task["goldsmith.images.net_validate"] or {} for task in tasks if "goldsmith.images.net_validate" in task]
    assert len(runs) >= 6
    for params in runs:
        report = net.island.validate(**{**params, "timeout": 0.5, "retries": 0, "fail_on": []})
        assert not report["ok"], report
        assert "internal" not in [entry["error_class"] for entry in report["checks"]], report


def test_oldest_python_of_a_target(net: Net) -> None:
    pythons = [shutil.which("python3.9"), *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9"))]
    working = [path for path in pythons if path and subprocess.run([path, "-V"], check=False).returncode == 0]
    if not working:
        pytest.skip("there is no Python 3.9 here")
    seen = outcomes(net.client.validate(python=working[-1], **survey_options(net)))
    assert {key: says(entry) for key, entry in seen.items() if key in SURVEY} == SURVEY


def test_secrets_are_not_in_the_module_s_result(net: Net, run_module: Any, tmp_path: Path) -> None:
    page = {"url": f"http://{SERVER}/hello", "proxy": "http://192.0.2.1:3129"}
    result = run_module(
        "net_validate",
        _python=inside(net.client, tmp_path),
        http=[{**page, "proxy_username": "user", "proxy_password": "secret-word"}],
        **NOTHING_LOCAL,
    )
    assert says(one(result)) == ("pass", None), result
    assert "secret-word" not in str(result)
