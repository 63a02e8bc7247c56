# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a controller has come, from the open port to its own report on its health."""

from __future__ import annotations

import json
import threading
import time

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._cml_gui import Check, Wanted
from ansible_collections.goldsmith.images.plugins.module_utils._cml_version import Expectation
from ansible_collections.goldsmith.images.plugins.module_utils._https_client import parse_place
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline
from ansible_collections.goldsmith.images.tests.support.cml_controller import (
    PASSWORD,
    TOKEN,
    USER,
    Reply,
    Site,
    health,
    information,
)

# --- levels and states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "state"),
    [("tcp", "reachable"), ("web", "web"), ("api", "ready"), ("ready", "ready"), ("auth", "ok"), ("health", "ok")],
)
def test_each_level_of_a_healthy_controller(site: Site, level: str, state: str) -> None:
    result = site.check(level=level)
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
    result = site.check()
    assert (result["state"], result["level"], result["api"]["status"]) == ("backend_down", "web", 502)
    assert "virl2-controller" in result["hint"]
    assert site.check(level="web")["ok"]


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
    result = site.check()
    assert (result["ok"], result["state"], result["level"]) == (False, state, "web")
    assert text in result["problems"][0]
    assert result["hint"]


def test_redirect_on_the_same_host_is_followed(site: Site) -> None:
    site.controller.replies["system_information"] = Reply("", 307, location="/api/v0/elsewhere")
    site.controller.replies["elsewhere"] = information()
    assert site.check()["api"]["url"].endswith("/api/v0/elsewhere")
    # From port 80 to HTTPS: the certificate is verified there, and the password is sent there only.
    result = site.check("plain_redirect", level="auth")
    assert result["ok"]
    assert result["page"]["url"] == site.url() + "/"
    assert result["certificate"]["verified"]


def test_extra_keys_and_missing_parts_do_no_harm(site: Site) -> None:
    site.controller.replies["system_information"] = information(new_in_3="x", features={"a": 1})
    site.controller.replies["system_health"] = health({"new_flag": False, "fabric": None}, more=[1])
    assert site.check(level="health")["ok"]
    site.controller.replies["system_health"] = Reply({"unknown": "shape"})
    result = site.check(level="health")
    assert result["state"] == "unhealthy"
    assert "not in the shape of a known release" in result["problems"][0]


# --- readiness and health --------------------------------------------------------------------------------------------


def test_not_ready_without_credentials_says_how_to_learn_more(site: Site) -> None:
    site.controller.replies["system_information"] = information(ready=False)
    result = site.check()
    assert (result["state"], result["level"], result["ready"]) == ("not_ready", "api", False)
    assert result["never_ready_reason"] is None
    assert "username" in result["hint"]
    assert site.check(level="api")["ok"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [({"kvm_vmx_enabled": False}, "no_kvm"), ({"enough_cpus": False}, "not_enough_cpus"), ({"libvirt": False}, None)],
)
def test_why_it_will_never_be_ready(site: Site, flags: dict[str, bool], reason: str | None) -> None:
    site.controller.replies["system_information"] = information(ready=False)
    site.controller.replies["system_health"] = health({**flags, "valid": False}, valid=False)
    start = time.monotonic()
    result = site.check(username=USER, password=PASSWORD, wait=2, interval=0.2)
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
    assert site.check(username=USER, password=PASSWORD)["never_ready_reason"] is None


def test_what_kvm_check_said_counts(site: Site) -> None:
    site.controller.replies["system_information"] = information(ready=False)
    result = site.check(kvm_usable=False, wait=20)
    assert (result["never_ready_reason"], result["attempts"]) == ("no_kvm", 1)


def test_unhealthy_names_host_and_flags(site: Site) -> None:
    site.controller.replies["system_health"] = health({"fabric": False, "docker_shim": False}, valid=False)
    result = site.check(level="health")
    assert (result["state"], result["level"]) == ("unhealthy", "auth")
    assert "cml-controller: fabric, docker_shim false" in result["problems"][0]


def test_licence(site: Site) -> None:
    site.controller.replies["system_health"] = health(is_licensed=False, valid=False)
    assert site.check(level="health")["state"] == "unhealthy"
    site.controller.replies["system_health"] = health(is_licensed=False)
    assert site.check(level="health")["state"] == "licensed_no"


# --- waiting ---------------------------------------------------------------------------------------------------------


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
    result = site.check(wait=30, interval=0.3)
    timer.join()
    assert result["ok"] and result["attempts"] >= 5, result
    assert result["elapsed"] < 15


def test_deadline_holds_while_waiting(site: Site) -> None:
    site.controller.replies["system_information"] = Reply({"version": "2.9.1", "ready": True}, manner="slow")
    start = time.monotonic()
    result = site.check(wait=2, interval=0.2, timeout=60)
    assert not result["ok"]
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("name", ["expired", "self_signed"])
def test_does_not_wait_for_a_certificate(site: Site, name: str) -> None:
    assert site.check(name, wait=30, interval=0.1)["attempts"] == 1


# --- version -------------------------------------------------------------------------------------------------------


def test_version_expectation(site: Site) -> None:
    assert site.check(version=Expectation(">=2.8,<2.10"))["ok"]
    result = site.check(version=Expectation(">=2.10"), wait=30)
    assert (result["ok"], result["state"], result["attempts"]) == (False, "ready", 1)
    assert result["problems"] == ["the version is 2.9.1+build.7, expected >=2.10"]
    site.controller.replies["system_information"] = information(version="unknown\ud800\x1b[31m")
    result = site.check(version=Expectation(">=2.8"))
    assert result["version"] == "unknown??[31m" and not result["ok"]


# --- credentials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply", [Reply(json.dumps(TOKEN)), Reply({"token": TOKEN, "id": "1", "username": USER, "admin": True})]
)
def test_token_as_string_and_in_an_object(site: Site, reply: Reply) -> None:
    site.controller.replies["authenticate"] = reply
    assert site.check(level="health")["ok"]
    assert ("GET", "/api/v0/system_health", f"Bearer {TOKEN}") in site.controller.requests


@pytest.mark.parametrize(
    "reply", [Reply({"key": "x"}), Reply(""), Reply([1]), Reply("with\r\nnewline"), Reply('"with\\nnewline"')]
)
def test_no_token_in_the_answer(site: Site, reply: Reply) -> None:
    site.controller.replies["authenticate"] = reply
    assert site.check(level="auth")["state"] in ("auth_failed", "web_only")


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_tried_once(site: Site, status: int) -> None:
    site.controller.replies["authenticate"] = Reply({"description": "no"}, status)
    result = site.check(level="auth", wait=20, interval=0.1)
    assert (result["state"], result["level"], result["attempts"]) == ("auth_failed", "ready", 1)
    assert f"status {status}" in result["problems"][0]


def test_wrong_password_while_waiting_for_ready_is_sent_once(site: Site) -> None:
    site.controller.replies["system_information"] = information(ready=False)
    result = site.check(username=USER, password="wrong-password", wait=1, interval=0.2)
    assert result["state"] == "not_ready" and result["attempts"] > 1
    assert [path for _method, path, _token in site.controller.requests].count("/api/v0/authenticate") == 1


@pytest.mark.parametrize("status", [401, 403])
def test_token_that_is_not_accepted(site: Site, status: int) -> None:
    site.controller.replies["authok"] = Reply({"description": "expired"}, status)
    assert site.check(level="auth")["state"] == "auth_failed"


def test_controller_that_goes_down_in_between(site: Site) -> None:
    site.controller.replies["authenticate"] = Reply("", 502, "text/html")
    result = site.check(level="auth")
    assert (result["state"], result["level"]) == ("backend_down", "ready")


def test_password_over_plain_http_stays_here(site: Site) -> None:
    assert site.check("plain", level="auth")["ok"]  # loopback
    wanted = Wanted(parse_place("http://cml.example.com"), level="auth", username=USER, password=PASSWORD)
    with pytest.raises(Exception, match="not sent to http://cml.example.com over plain HTTP"):
        Check(wanted)._log_in(Deadline(5))
