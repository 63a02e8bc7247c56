# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that can be seen from one machine, in one run: which checks pass, and which fail as what."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import network
from ansible_collections.goldsmith.images.tests.support.broken_network import SERVER, Net
from ansible_collections.goldsmith.images.tests.support.net_report import outcomes, says

pytestmark = network.needed

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


def test_oldest_python_of_a_target(net: Net) -> None:
    pythons = [shutil.which("python3.9"), *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9"))]
    working = [path for path in pythons if path and subprocess.run([path, "-V"], check=False).returncode == 0]
    if not working:
        pytest.skip("there is no Python 3.9 here")
    seen = outcomes(net.client.validate(python=working[-1], **survey_options(net)))
    assert {key: says(entry) for key, entry in seen.items() if key in SURVEY} == SURVEY
