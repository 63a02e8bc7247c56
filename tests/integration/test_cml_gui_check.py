# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cml_gui_check against a real nginx with TLS and a stand-in controller behind it; nothing leaves loopback."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _cml_spec, _https_client
from ansible_collections.goldsmith.images.plugins.module_utils._cml_gui import Check, CmlError, Wanted
from ansible_collections.goldsmith.images.plugins.module_utils._cml_version import Expectation
from ansible_collections.goldsmith.images.plugins.module_utils._https_client import Trust, parse_place
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.cml_controller import (
    PAGE,
    PASSWORD,
    TOKEN,
    USER,
    Reply,
    Site,
    free_port,
    health,
    information,
    serve,
)

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
MIB = 1024
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serve(tmp_path_factory.mktemp("cml"), NGINX or "") as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    running.controller.reset()
    running.page.write_text(PAGE, encoding="utf-8")
    return running


def check(site: Site, name: str = "good", host: str = "localhost", **options: Any) -> dict[str, Any]:
    """The module's logic, without starting Ansible."""
    if options.get("level") in ("auth", "health"):
        options = {"username": USER, "password": PASSWORD, **options}
    options.setdefault("trust", Trust(ca_path=site.ca_path))
    return Check(Wanted(parse_place(site.url(name, host)), **options)).run()


# --- levels and states ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "state"),
    [("tcp", "reachable"), ("web", "web"), ("api", "ready"), ("ready", "ready"), ("auth", "ok"), ("health", "ok")],
)
def test_each_level_of_a_healthy_controller(site: Site, level: str, state: str) -> None:
    result = check(site, level=level)
    assert (result["ok"], result["state"], result["level"], result["problems"], result["hint"]) == (
        True,
        state,
        level,
        [],
        "",
    )
    if level != "tcp":
        assert result["page"]["title"] == "Modeling Labs & stand-in"
        assert result["certificate"]["verified"] is True
        assert result["certificate"]["names"] == ["localhost", "127.0.0.1"]
    asked = {path for _method, path, _token in site.controller.requests}
    assert ("/api/v0/authenticate" in asked) is (level in ("auth", "health"))


def test_web_server_without_controller(site: Site) -> None:
    site.controller.stop()
    result = check(site)
    assert (result["state"], result["level"], result["api"]["status"]) == ("backend_down", "web", 502)
    assert "virl2-controller" in result["hint"]
    assert check(site, level="web")["ok"]


@pytest.mark.parametrize(
    ("reply", "state", "text"),
    [
        (Reply("", 503, "text/html"), "backend_down", "status 503"),
        (Reply("", 504, "text/html"), "backend_down", "status 504"),
        (Reply("", 500, "text/html"), "backend_down", "status 500"),
        (Reply("<html><title>CML</title></html>", 200, "text/html"), "web_only", "content type text/html"),
        (Reply("{}", 200), "web_only", "without version and ready"),
        (Reply('"ready"', 200), "web_only", "without version and ready"),
        (Reply({"version": "2.9.1", "ready": "yes"}), "web_only", "without version and ready"),
        (Reply("[" * 100_000, 200), "web_only", "no JSON"),
        (Reply("", 404), "web_only", "status 404"),
        (Reply("", 401), "web_only", "status 401"),
        (Reply("", 302, location="https://login.example.com/x"), "web_only", "to https://login.example.com/x"),
        (Reply("", 302, location="http://localhost/api"), "web_only", "to http://localhost/api"),
        (Reply("", 302, location="/api/v0/system_information"), "web_only", "more than 5 redirects"),
        (Reply(" " * 300_000), "web_only", "longer than"),
        (Reply({"version": "2.9.1", "ready": True}, manner="cut"), "web_only", "no JSON"),
    ],
)
def test_what_is_not_the_api(site: Site, reply: Reply, state: str, text: str) -> None:
    site.controller.replies["system_information"] = reply
    result = check(site)
    assert (result["ok"], result["state"], result["level"]) == (False, state, "web")
    assert text in result["problems"][0]
    assert result["hint"]


def test_redirect_on_the_same_host_is_followed(site: Site) -> None:
    site.controller.replies["system_information"] = Reply("", 307, location="/api/v0/elsewhere")
    site.controller.replies["elsewhere"] = information()
    assert check(site)["api"]["url"].endswith("/api/v0/elsewhere")
    # From port 80 to HTTPS: the certificate is verified there, and the password is sent there only.
    result = check(site, "plain_redirect", level="auth")
    assert result["ok"]
    assert result["page"]["url"] == site.url() + "/"
    assert result["certificate"]["verified"]


def test_extra_keys_and_missing_parts_do_no_harm(site: Site) -> None:
    site.controller.replies["system_information"] = information(new_in_3="x", features={"a": 1})
    site.controller.replies["system_health"] = health({"new_flag": False, "fabric": None}, more=[1])
    assert check(site, level="health")["ok"]
    site.controller.replies["system_health"] = Reply({"unknown": "shape"})
    result = check(site, level="health")
    assert result["state"] == "unhealthy"
    assert "not in the shape of a known release" in result["problems"][0]


# --- certificates ---------------------------------------------------------------------------------------------------


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
    result = check(site, name, host, level="health")
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
    result = check(site, trust=Trust())
    assert result["certificate"]["problems"] == ["issuer unknown"]


def test_own_certificate_as_its_authority(site: Site) -> None:
    path = str(site.certificates["self_signed"].certificate)
    assert check(site, "self_signed", trust=Trust(ca_path=path), level="health")["ok"]


def test_pinned_fingerprint_overrides_all_the_rest(site: Site) -> None:
    right = site.certificates["all_wrong"].fingerprint
    result = check(site, "all_wrong", trust=Trust(fingerprint=right), level="health")
    assert result["ok"] and result["certificate"]["verified"]
    assert len(result["certificate"]["problems"]) == 3  # they are reported all the same
    site.controller.requests.clear()
    result = check(site, "good", trust=Trust(fingerprint=right), level="health")
    assert (result["state"], result["certificate"]["fingerprint"]) == (
        "tls_error",
        site.certificates["good"].fingerprint,
    )
    assert site.certificates["good"].fingerprint in result["problems"][0]
    assert site.controller.requests == []


def test_validation_switched_off(site: Site) -> None:
    result = check(site, "all_wrong", trust=Trust(validate=False))
    assert result["ok"] and result["certificate"]["verified"] is False


def test_tls_where_there_is_none(site: Site) -> None:
    place = parse_place(f"https://localhost:{site.ports['plain']}")
    result = Check(Wanted(place)).run()
    assert (result["state"], result["error_class"]) == ("tls_error", "not_tls")


# --- time and memory ------------------------------------------------------------------------------------------------


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
    result = check(site, timeout=1.0)
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


# --- credentials ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply", [Reply(json.dumps(TOKEN)), Reply({"token": TOKEN, "id": "1", "username": USER, "admin": True})]
)
def test_token_as_string_and_in_an_object(site: Site, reply: Reply) -> None:
    site.controller.replies["authenticate"] = reply
    assert check(site, level="health")["ok"]
    assert ("GET", "/api/v0/system_health", f"Bearer {TOKEN}") in site.controller.requests


@pytest.mark.parametrize(
    "reply", [Reply({"key": "x"}), Reply(""), Reply([1]), Reply("with\r\nnewline"), Reply('"with\\nnewline"')]
)
def test_no_token_in_the_answer(site: Site, reply: Reply) -> None:
    site.controller.replies["authenticate"] = reply
    assert check(site, level="auth")["state"] in ("auth_failed", "web_only")


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_tried_once(site: Site, status: int) -> None:
    site.controller.replies["authenticate"] = Reply({"description": "no"}, status)
    result = check(site, level="auth", wait=20, interval=0.1)
    assert (result["state"], result["level"], result["attempts"]) == ("auth_failed", "ready", 1)
    assert f"status {status}" in result["problems"][0]


def test_wrong_password_while_waiting_for_ready_is_sent_once(site: Site) -> None:
    site.controller.replies["system_information"] = information(ready=False)
    result = check(site, username=USER, password="wrong-password", wait=1, interval=0.2)
    assert result["state"] == "not_ready" and result["attempts"] > 1
    assert [path for _method, path, _token in site.controller.requests].count("/api/v0/authenticate") == 1


@pytest.mark.parametrize("status", [401, 403])
def test_token_that_is_not_accepted(site: Site, status: int) -> None:
    site.controller.replies["authok"] = Reply({"description": "expired"}, status)
    assert check(site, level="auth")["state"] == "auth_failed"


def test_controller_that_goes_down_in_between(site: Site) -> None:
    site.controller.replies["authenticate"] = Reply("", 502, "text/html")
    result = check(site, level="auth")
    assert (result["state"], result["level"]) == ("backend_down", "ready")


def test_password_over_plain_http_stays_here(site: Site) -> None:
    assert check(site, "plain", level="auth")["ok"]  # loopback
    wanted = Wanted(parse_place("http://cml.example.com"), level="auth", username=USER, password=PASSWORD)
    with pytest.raises(Exception, match="not sent to http://cml.example.com over plain HTTP"):
        Check(wanted)._log_in(Deadline(5))


# --- readiness and health -------------------------------------------------------------------------------------------


def test_not_ready_without_credentials_says_how_to_learn_more(site: Site) -> None:
    site.controller.replies["system_information"] = information(ready=False)
    result = check(site)
    assert (result["state"], result["level"], result["ready"]) == ("not_ready", "api", False)
    assert result["never_ready_reason"] is None
    assert "username" in result["hint"]
    assert check(site, level="api")["ok"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [({"kvm_vmx_enabled": False}, "no_kvm"), ({"enough_cpus": False}, "not_enough_cpus"), ({"libvirt": False}, None)],
)
def test_why_it_will_never_be_ready(site: Site, flags: dict[str, bool], reason: str | None) -> None:
    site.controller.replies["system_information"] = information(ready=False)
    site.controller.replies["system_health"] = health({**flags, "valid": False}, valid=False)
    start = time.monotonic()
    result = check(site, username=USER, password=PASSWORD, wait=2, interval=0.2)
    assert (result["state"], result["never_ready_reason"]) == ("not_ready", reason)
    if reason:  # said twice: waiting ends
        assert result["attempts"] == 2
        assert time.monotonic() - start < 1.8
        assert "will not become ready" in result["hint"]
    else:
        assert result["attempts"] > 2


def test_other_compute_host_that_can_run_vms_keeps_hope(site: Site) -> None:
    computes = {"a": {"kvm_vmx_enabled": False}, "b": {"kvm_vmx_enabled": True, "lld_connected": False}}
    site.controller.replies["system_information"] = information(ready=False)
    site.controller.replies["system_health"] = health(valid=False, computes=computes)
    assert check(site, username=USER, password=PASSWORD)["never_ready_reason"] is None


def test_what_kvm_check_said_counts(site: Site) -> None:
    site.controller.replies["system_information"] = information(ready=False)
    result = check(site, kvm_usable=False, wait=20)
    assert (result["never_ready_reason"], result["attempts"]) == ("no_kvm", 1)


def test_unhealthy_names_host_and_flags(site: Site) -> None:
    site.controller.replies["system_health"] = health({"fabric": False, "docker_shim": False}, valid=False)
    result = check(site, level="health")
    assert (result["state"], result["level"]) == ("unhealthy", "auth")
    assert "cml-controller: fabric, docker_shim false" in result["problems"][0]


def test_licence(site: Site) -> None:
    site.controller.replies["system_health"] = health(is_licensed=False, valid=False)
    assert check(site, level="health")["state"] == "unhealthy"
    site.controller.replies["system_health"] = health(is_licensed=False)
    assert check(site, level="health")["state"] == "licensed_no"


# --- waiting --------------------------------------------------------------------------------------------------------


def test_waits_from_502_to_not_ready_to_ready(site: Site) -> None:
    site.controller.stop()
    site.controller.replies["system_information"] = [
        Reply("", 503, "text/html"),
        Reply("<html>", 200, "text/html"),
        information(ready=False),
        information(),
    ]
    timer = threading.Timer(0.6, site.controller.start)
    timer.start()
    result = check(site, wait=30, interval=0.3)
    timer.join()
    assert result["ok"] and result["attempts"] >= 5, result
    assert result["elapsed"] < 15


def test_deadline_holds_while_waiting(site: Site) -> None:
    site.controller.replies["system_information"] = Reply({"version": "2.9.1", "ready": True}, manner="slow")
    start = time.monotonic()
    result = check(site, wait=2, interval=0.2, timeout=60)
    assert not result["ok"]
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("name", ["expired", "self_signed"])
def test_does_not_wait_for_a_certificate(site: Site, name: str) -> None:
    assert check(site, name, wait=30, interval=0.1)["attempts"] == 1


# --- version and ports ----------------------------------------------------------------------------------------------


def test_version_expectation(site: Site) -> None:
    assert check(site, version=Expectation(">=2.8,<2.10"))["ok"]
    result = check(site, version=Expectation(">=2.10"), wait=30)
    assert (result["ok"], result["state"], result["attempts"]) == (False, "ready", 1)
    assert result["problems"] == ["the version is 2.9.1+build.7, expected >=2.10"]
    site.controller.replies["system_information"] = information(version="unknown\ud800\x1b[31m")
    result = check(site, version=Expectation(">=2.8"))
    assert result["version"] == "unknown??[31m" and not result["ok"]


def test_ports(site: Site) -> None:
    def greets(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    closed = free_port()
    with talker(greets) as other:
        result = check(site, level="tcp", ports=[other, closed])
    assert [(port["port"], port["state"]) for port in result["ports"]] == [(other, "open"), (closed, "refused")]
    assert result["problems"] == [f"port {closed} (other) is not open: refused"]
    assert result["state"] == "reachable" and "ss -tln" in result["hint"]


# --- the page in a browser ------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs playwright, and Debian's chromium-headless-shell",
)
BY_SCRIPT = """<html><title>drawn</title><link rel="icon" href="data:,"><body><script>
setTimeout(() => document.body.innerHTML = '<input name=u><input type=password>', 300);
</script></body></html>"""


@needs_browser
@pytest.mark.parametrize(("page", "title"), [(PAGE, "Modeling Labs & stand-in"), (BY_SCRIPT, "drawn")])
def test_log_in_page_in_chromium(site: Site, page: str, title: str) -> None:
    site.page.write_text(page, encoding="utf-8")
    result = check(site, level="browser", timeout=60)
    assert (result["ok"], result["level"], result["problems"]) == (True, "browser", [])
    assert result["browser"] == {"title": title, "user_field": True, "password_field": True, "errors": []}


@needs_browser
@pytest.mark.parametrize(
    ("body", "problems"),
    [
        ("<input name=u>", ["no field for the password"]),
        ("<input name=u><input type=password style='display:none'>", ["no field for the password"]),
        ("<input type=password>", ["no field for the user name"]),
        ("<input><input type=password><script>no.such.thing()</script>", ["no is not defined"]),
        ("<input><input type=password><script>console.error('out of order')</script>", ["out of order"]),
        ("<input><input type=password><img src='https://tracker.example.com/x.png'>", ["tracker.example.com"]),
        ("<input><input type=password><script src='/api/v0/app.js'></script>", ["404"]),
    ],
)
def test_log_in_page_that_cannot_be_used(site: Site, body: str, problems: list[str]) -> None:
    site.page.write_text(f"<html><link rel='icon' href='data:,'><body>{body}</body></html>", encoding="utf-8")
    result = check(site, level="browser", timeout=4)
    assert (result["ok"], result["state"], result["level"]) == (False, "page_broken", "web")
    for text in problems:
        assert text in result["problems"][0]


@needs_browser
def test_browser_that_cannot_be_started(site: Site) -> None:
    with pytest.raises(CmlError, match="there is no browser /no/such/browser"):
        check(site, level="browser", browser_path="/no/such/browser")
    with pytest.raises(CmlError, match="/bin/true cannot be started"):
        check(site, level="browser", browser_path="/bin/true")


@needs_browser
def test_module_with_a_browser(run_module, site: Site) -> None:
    result = run_module("cml_gui_check", host=site.url(), ca_path=site.ca_path, level="browser", timeout=60)
    documented.check_returned("cml_gui_check", result)
    assert result["ok"], result


def test_python_without_playwright_says_what_to_install(site: Site) -> None:
    # The isolated mode of this Python leaves the virtual environment's libraries out.
    code = (
        "import sys;sys.path.insert(0,sys.argv[1]);sys.modules['playwright']=None\n"
        "from ansible_collections.goldsmith.images.plugins.module_utils import _cml_gui,_https_client as h\n"
        "w=_cml_gui.Wanted(h.parse_place(sys.argv[2]),h.Trust(ca_path=sys.argv[3]),level='browser')\n"
        "_cml_gui.Check(w).run()"
    )
    tree = str(Path(_https_client.__file__).resolve().parents[2] / ".venv" / "collections")
    command = [sys.executable, "-c", code, tree, site.url(), site.ca_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "pip install playwright" in done.stderr


# --- the module -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check_mode", [False, True])
def test_module(run_module, site: Site, check_mode: bool) -> None:
    environment = {"CML_HOST": site.url(), "CML_USERNAME": USER, "CML_PASSWORD": PASSWORD}
    result = run_module("cml_gui_check", _check=check_mode, _env=environment, level="health", ca_path=site.ca_path)
    documented.check_returned("cml_gui_check", result)
    assert not result["failed"], result.get("msg")
    assert (result["changed"], result["ok"], result["state"]) == (False, True, "ok")


def test_module_fails_with_problem_and_hint_and_without_secrets(run_module, site: Site) -> None:
    # What the server sends repeats password and token.
    site.controller.replies["system_information"] = information(version=f"{PASSWORD} {TOKEN}", ready=True)
    site.controller.replies["system_health"] = health({"hostname": f"{PASSWORD}/{TOKEN}", "fabric": False})
    result = run_module(
        "cml_gui_check",
        _env={"ANSIBLE_VERBOSITY": "4"},
        host="localhost",
        port=site.ports["good"],
        fingerprint=":".join(site.certificates["good"].fingerprint[i : i + 2].upper() for i in range(0, 64, 2)),
        username=USER,
        password=PASSWORD,
        level="health",
        fail=True,
    )
    documented.check_returned("cml_gui_check", result)
    assert result["failed"] and result["hint"] in result["msg"]
    assert "fabric" in result["msg"]
    text = json.dumps(result)
    assert PASSWORD not in text and TOKEN not in text


def test_oldest_python_of_a_target(run_module, site: Site) -> None:
    pythons = [shutil.which("python3.9"), *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9"))]
    working = [p for p in pythons if p and subprocess.run([p, "-V"], capture_output=True, check=False).returncode == 0]
    if not working:
        pytest.skip("there is no Python 3.9 here")
    for name, level in (("good", "health"), ("all_wrong", "health")):
        result = run_module(
            "cml_gui_check",
            _python=working[0],
            host=site.url(name),
            ca_path=site.ca_path,
            username=USER,
            password=PASSWORD,
            level=level,
        )
        documented.check_returned("cml_gui_check", result)
        assert result["state"] == ("ok" if name == "good" else "tls_error"), result
        assert len(result["certificate"]["problems"]) == (0 if name == "good" else 3)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "host"),
        ({"host": "https://user:secret-word@cml.example.com"}, "give username and password as options"),
        ({"host": "ftp://cml.example.com"}, "not a server's address"),
        ({"host": "cml.example.com/lab"}, "not a server's address"),
        ({"host": "cml.example.com:99999"}, "cml.example.com:99999"),
        ({"host": "cml.example.com:443", "port": 8443}, "contradict"),
        ({"host": "cml.example.com", "port": 0}, "not a port"),
        ({"host": "h", "level": "everything"}, "tcp"),
        ({"host": "h", "level": "auth"}, "CML_PASSWORD"),
        ({"host": "h", "level": "web", "expect_version": "2.9"}, "contradicts level web"),
        ({"host": "h", "expect_version": ">=2.10,<2.9"}, "contradict"),
        ({"host": "h", "expect_version": "new"}, "not a version"),
        ({"host": "h", "validate_certs": False, "fingerprint": "0" * 64}, "contradicts"),
        ({"host": "h", "fingerprint": "00:11"}, "64 hexadecimal digits"),
        ({"host": "h", "ca_path": "/no/such/file"}, "/no/such/file"),
        ({"host": "h", "ca_path": "/dev/null"}, "/dev/null"),
        ({"host": "h", "timeout": 0}, "timeout"),
        ({"host": "h", "check_ports": [70000]}, "70000"),
    ],
)
def test_bad_input(run_module, params: dict[str, Any], text: str) -> None:
    # One Ansible run costs a second, so only a few go all the way.
    if text in ("host", "tcp"):
        result = run_module("cml_gui_check", **params)
        assert result["failed"] and text in result["msg"]
        return
    defaults = dict.fromkeys(
        ("port", "expect_version", "fingerprint", "ca_path", "username", "password", "kvm_usable", "browser_path")
    )
    rest = {"level": "ready", "timeout": 15.0, "wait": 0.0, "interval": 5.0, "check_ports": [], "validate_certs": True}
    with pytest.raises(CmlError) as error:
        _cml_spec.read({**defaults, **rest, **params})
    assert text in str(error.value)
    assert "secret-word" not in str(error.value)
