# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why an EC2 instance has no KVM, from what the caller says and from a local server that speaks IMDSv2."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _kvm_ec2
from ansible_collections.goldsmith.images.plugins.module_utils._kvm_ec2 import Instance

TOKEN = "t0ken=="
NESTED = ["nested-virtualization"]


@pytest.mark.parametrize(
    ("instance_type", "can"),
    [
        ("m8i.large", True),
        ("c8i-flex.2xlarge", True),
        ("r8id.96xlarge", True),
        ("m5zn.metal", True),
        ("c6i.metal-48xl", True),
        ("m7g.metal", True),
        ("c5.2xlarge", False),
        ("m6i.large", False),
        ("m8g.large", False),
        ("c8a.large", False),
        ("t3.micro", False),
        ("c7i.large", None),
        ("i7ie.large", None),
        ("m9i.large", None),
        ("p5.48xlarge", False),
        ("mac2-m2.metal", True),
        ("nonsense", None),
    ],
)
def test_what_is_known_of_types(instance_type: str, can: bool | None) -> None:
    assert _kvm_ec2.type_can_nest(instance_type) is can


@pytest.mark.parametrize(
    ("instance", "state", "diagnosis", "words"),
    [
        (Instance(), {}, None, ""),
        (Instance("m8i.large"), {"accelerated": True, "has_flag": True, "module_loaded": True}, "ok", ""),
        (Instance("m8i.large"), {"has_flag": True, "module_loaded": True}, None, ""),
        (Instance("m8i.large"), {"has_flag": True}, "module_missing", "modprobe kvm_intel"),
        (Instance("m8i.large"), {}, "opt_in_missing", "NestedVirtualization=enabled"),
        (Instance("m8i.large", nested_enabled=False), {}, "opt_in_missing", "while the instance is stopped"),
        (Instance("m8i.large", nested_enabled=True), {}, "flag_missing", "Stop it and start it again"),
        (Instance("c5.2xlarge"), {}, "type_cannot", "c5.2xlarge cannot run VMs"),
        (Instance("m8g.large"), {}, "type_cannot", "or a metal type"),
        (Instance("c7i.large"), {}, "type_unknown", "describe-instance-types --instance-types c7i.large"),
        # What the API says counts more.
        (Instance("c7i.large", supported_features=NESTED), {}, "opt_in_missing", "c7i.large can"),
        (Instance("c7i.large", supported_features=["amd-sev-snp"]), {}, "type_cannot", "c7i.large cannot"),
        (Instance("x9z.large", supported_features=NESTED), {}, "opt_in_missing", "x9z.large can"),
        # On metal nothing can be switched on: whatever is wrong is not EC2's.
        (Instance("m5.metal"), {}, None, ""),
        (Instance("m5.metal"), {"has_flag": True}, "module_missing", "modprobe"),
    ],
)
def test_diagnosis(instance: Instance, state: dict[str, bool], diagnosis: str | None, words: str) -> None:
    known = {"accelerated": False, "has_flag": False, "module_loaded": False, **state}
    found, hint = _kvm_ec2.diagnose(instance, **known)
    assert found == diagnosis
    assert words in hint
    assert bool(hint) is bool(words)


class Imds(BaseHTTPRequestHandler):
    """As AWS describes IMDSv2: without a token of its own the answer is 401."""

    instance_type = "m8i.large"

    def do_PUT(self) -> None:
        seconds = int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0"))
        valid = self.path == "/latest/api/token" and 1 <= seconds <= 21600
        self._answer(200 if valid else 400, TOKEN)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self._answer(401, "Unauthorized")
        elif self.path != "/latest/meta-data/instance-type":
            self._answer(404, "Not Found")
        else:
            self._answer(200, self.instance_type)

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        pass


class Disabled(Imds):
    def do_PUT(self) -> None:
        self._answer(403, "Forbidden")


class Nonsense(Imds):
    instance_type = "<html>Please log in</html>"


class NoHttp(Imds):
    def do_PUT(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH\r\n")


class Silent(Imds):
    def do_PUT(self) -> None:
        time.sleep(2.5)


Serve = Callable[[type[BaseHTTPRequestHandler]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(handler: type[BaseHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_imds_is_asked_with_a_token(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be used
    found = _kvm_ec2.gather(None, serve(Imds), "c5.large")
    assert (found.instance_type, found.source, found.imds_error) == ("m8i.large", "imds", None)


def test_caller_knows_better_and_nobody_is_asked() -> None:
    found = _kvm_ec2.gather(
        {"instance_type": "c7i.large", "nested_virtualization": "enabled"}, "http://127.0.0.1:9", None
    )
    assert (found.instance_type, found.source, found.nested_enabled) == ("c7i.large", "caller", True)
    assert found.imds_error is None


@pytest.mark.parametrize(
    ("handler", "words"),
    [(Disabled, "403"), (Nonsense, "no instance type"), (NoHttp, "SSH-2.0"), (Silent, "in time"), (None, "refused")],
)
def test_without_an_answer_dmi_counts(serve: Serve, handler: type[Imds] | None, words: str) -> None:
    endpoint = serve(handler) if handler else "http://127.0.0.1:9"
    start = time.monotonic()
    found = _kvm_ec2.gather(None, endpoint, "c5.2xlarge")
    assert time.monotonic() - start < 2.4
    assert (found.instance_type, found.source) == ("c5.2xlarge", "dmi")
    assert words in (found.imds_error or "")


def test_machine_that_is_not_on_ec2() -> None:
    assert _kvm_ec2.gather(None, None, None) == Instance()
