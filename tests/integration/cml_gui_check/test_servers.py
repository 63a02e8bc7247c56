# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that are not what they should be: certificates, no answer, too slow an answer, too long a one."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._cml_gui import Check, Wanted
from ansible_collections.goldsmith.images.plugins.module_utils._https_client import Trust, parse_place
from ansible_collections.goldsmith.images.tests.support.cml_controller import (
    Reply,
    Site,
    free_port,
)

# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "host", "problems"),
    [
        ("expired", "localhost", ["expired on"]),
        ("future", "localhost", ["not valid before"]),
        ("other_name", "localhost", ["made for another name than localhost"]),
        ("other_name", "127.0.0.1", ["made for another name than 127.0.0.1"]),
        ("self_signed", "localhost", ["self-signed"]),
        ("all_wrong", "localhost", ["self-signed", "made for another name than localhost", "expired on"]),
    ],
)
def test_everything_wrong_with_a_certificate_is_named(site: Site, name: str, host: str, problems: list[str]) -> None:
    result = site.check(name, host, level="health")
    assert (result["state"], result["error_class"], result["level"]) == ("tls_error", "certificate", "tcp")
    found = result["certificate"]
    assert found["verified"] is False
    assert [text[: len(wanted)] for text, wanted in zip(found["problems"], problems)] == problems
    assert len(found["problems"]) == len(problems)
    assert found["fingerprint"] == site.certificates[name].fingerprint
    assert found["subject"] == f"commonName={name.replace('_', '-')}"
    assert found["not_after"] and (found["days_left"] < 0) is (name in ("expired", "all_wrong"))
    assert site.controller.requests == []  # above all no password


def test_unknown_issuer(site: Site) -> None:
    result = site.check(trust=Trust())
    assert result["certificate"]["problems"] == ["issuer unknown"]


def test_own_certificate_as_its_authority(site: Site) -> None:
    path = str(site.certificates["self_signed"].certificate)
    assert site.check("self_signed", trust=Trust(ca_path=path), level="health")["ok"]


def test_pinned_fingerprint_overrides_all_the_rest(site: Site) -> None:
    right = site.certificates["all_wrong"].fingerprint
    result = site.check("all_wrong", trust=Trust(fingerprint=right), level="health")
    assert result["ok"] and result["certificate"]["verified"]
    assert len(result["certificate"]["problems"]) == 3  # they are reported all the same
    site.controller.requests.clear()
    result = site.check("good", trust=Trust(fingerprint=right), level="health")
    assert (result["state"], result["certificate"]["fingerprint"]) == (
        "tls_error",
        site.certificates["good"].fingerprint,
    )
    assert site.certificates["good"].fingerprint in result["problems"][0]
    assert site.controller.requests == []


def test_validation_switched_off(site: Site) -> None:
    result = site.check("all_wrong", trust=Trust(validate=False))
    assert result["ok"] and result["certificate"]["verified"] is False


def test_tls_where_there_is_none(site: Site) -> None:
    place = parse_place(f"https://localhost:{site.ports['plain']}")
    result = Check(Wanted(place)).run()
    assert (result["state"], result["error_class"]) == ("tls_error", "not_tls")


# --- time and memory -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def talker(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of plain TCP that does with each connection what it is told to."""
    listener = socket.create_server(("127.0.0.1", 0))
    ending = threading.Event()

    def serve_all() -> None:
        while not ending.is_set():
            with contextlib.suppress(OSError):
                connection = listener.accept()[0]
                connection.settimeout(5)
                threading.Thread(target=quietly, args=(connection,), daemon=True).start()

    def quietly(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            talk(connection)

    threading.Thread(target=serve_all, daemon=True).start()
    yield listener.getsockname()[1]
    ending.set()
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def says_nothing(connection: socket.socket) -> None:
    connection.recv(65536)
    time.sleep(4)


def drips_a_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(40):
        connection.sendall(b"X-%d: x\r\n" % number)
        time.sleep(0.1)


def endless_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x" * 65536)


def endless_continues(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def no_http(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def hangs_up(connection: socket.socket) -> None:
    connection.recv(10)


@pytest.mark.parametrize(
    ("talk", "kinds"),
    [
        (says_nothing, {"timeout"}),
        (drips_a_head, {"timeout"}),
        (endless_head, {"not_http"}),
        (endless_continues, {"timeout"}),
        (no_http, {"not_http", "closed"}),
        (hangs_up, {"closed", "not_http"}),
    ],
)
def test_servers_that_never_answer_properly(talk: Callable[[socket.socket], None], kinds: set[str]) -> None:
    start = time.monotonic()
    with talker(talk) as port:
        result = Check(Wanted(parse_place(f"http://127.0.0.1:{port}"), timeout=1.0)).run()
    assert (result["state"], result["level"]) == ("no_web", "tcp")
    assert result["error_class"] in kinds
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("talk", [says_nothing, hangs_up, no_http])
def test_servers_that_never_finish_a_handshake(talk: Callable[[socket.socket], None]) -> None:
    start = time.monotonic()
    with talker(talk) as port:
        result = Check(Wanted(parse_place(f"https://127.0.0.1:{port}"), timeout=1.0)).run()
    assert result["state"] in ("no_web", "tls_error")
    assert result["level"] == "tcp"
    assert time.monotonic() - start < 3


def test_slow_body_has_no_more_time_than_others(site: Site) -> None:
    site.controller.replies["system_information"] = Reply({"version": "2.9.1", "ready": True}, manner="slow")
    start = time.monotonic()
    result = site.check(timeout=1.0)
    assert (result["state"], result["error_class"]) == ("backend_down", "timeout")
    assert time.monotonic() - start < 3


def test_endless_body_is_left_within_time_and_memory(site: Site) -> None:
    site.controller.replies["system_information"] = Reply("", manner="endless")
    code = (
        "import json,sys;sys.path[:0]=json.loads(sys.argv[1])\n"
        "from ansible_collections.goldsmith.images.plugins.module_utils import _cml_gui,_https_client as h\n"
        "r=_cml_gui.Check(_cml_gui.Wanted(h.parse_place(sys.argv[2]),h.Trust(ca_path=sys.argv[3]),timeout=10)).run()\n"
        "[peak]=[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')]\n"
        "print(json.dumps([r,int(peak)]))"
    )
    command = [sys.executable, "-c", code, json.dumps(sys.path), site.url(), site.ca_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    result, peak = json.loads(done.stdout)
    assert (result["state"], result["elapsed"] < 5) == ("web_only", True)
    assert "longer than" in result["problems"][0]
    assert peak < 100 * 1024  # kilobytes


@pytest.mark.parametrize(
    ("place", "state", "kind"),
    [
        ("https://localhost:{closed}", "refused", "refused"),
        ("https://no-such-host.invalid", "unreachable", "dns"),
        ("https://" + "x" * 70 + ".invalid", "unreachable", "dns"),
    ],
)
def test_nobody_there(place: str, state: str, kind: str) -> None:
    result = Check(Wanted(parse_place(place.format(closed=free_port())), timeout=5)).run()
    assert (result["state"], result["error_class"], result["level"]) == (state, kind, None)
    assert result["hint"]


def test_ports(site: Site) -> None:
    def greets(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    closed = free_port()
    with talker(greets) as other:
        result = site.check(level="tcp", ports=[other, closed])
    assert [(port["port"], port["state"]) for port in result["ports"]] == [(other, "open"), (closed, "refused")]
    assert result["problems"] == [f"port {closed} (other) is not open: refused"]
    assert result["state"] == "reachable" and "ss -tln" in result["hint"]
