# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One thing broken at a time: what net_validate says of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import network
from ansible_collections.goldsmith.images.tests.support.broken_network import SERVER, Net
from ansible_collections.goldsmith.images.tests.support.net_report import NOTHING_LOCAL, one, outcomes, says

pytestmark = network.needed


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


# Listens on port 9100 as soon as somebody has asked for it in vain; on 9101 it says that it is waiting.
LATE = """
import socket, sys
seen = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
waiting = socket.create_server((sys.argv[1], 9101))
asked = False
while not asked:
    packet = seen.recv(200)
    tcp = packet[(packet[0] & 15) * 4:]
    asked = packet[9] == socket.IPPROTO_TCP and int.from_bytes(tcp[2:4], "big") == 9100
server = socket.create_server((sys.argv[1], 9100))
while True:
    server.accept()
"""


def test_service_that_comes_up_late_is_found_by_a_retry(net: Net) -> None:
    late = net.server.start(sys.executable, "-I", "-c", LATE, SERVER)
    net.server.wait_for_port(9101)
    report = net.client.validate(tcp=[f"{SERVER}:9100", f"{SERVER}:4"], retries=4, timeout=10, **NOTHING_LOCAL)
    late.terminate()
    assert says(one(report)) == ("pass", None)
    assert one(report)["attempts"] > 1
    assert (*says(one(report, 1)), one(report, 1)["attempts"]) == ("fail", "refused", 5)


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
