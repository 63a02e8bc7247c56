# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the controller of Cisco Modeling Labs, which nobody may redistribute, behind a real nginx with TLS.

What it answers follows the API as its public clients use it: https://developer.cisco.com/docs/modeling-labs/.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.goldsmith.images.plugins.module_utils._cml_gui import Check, Wanted
from ansible_collections.goldsmith.images.plugins.module_utils._https_client import Trust, parse_place
from ansible_collections.goldsmith.images.tests.support.certificates import Authority, Issued

API = "/api/v0"
USER, PASSWORD, TOKEN = "admin", "correct-horse-battery", "ey.token.of-the-stub"
INFORMATION = {"version": "2.9.1+build.7", "ready": True, "allow_ssh_pubkey_auth": False, "oui": "52:54:00:00:00:00"}
COMPUTE = {
    "kvm_vmx_enabled": True,
    "enough_cpus": True,
    "lld_connected": True,
    "lld_synced": True,
    "libvirt": True,
    "fabric": True,
    "device_mux": True,
    "refplat_images_available": True,
    "docker_shim": True,
    "valid": True,
    "admission_state": "READY",
    "is_controller": True,
    "hostname": "cml-controller",
}
HEALTH = {
    "valid": True,
    "is_licensed": True,
    "is_enterprise": False,
    "computes": {"2d2a0b1c": COMPUTE},
    "controller": {"core_connected": True, "nodes_loaded": True, "images_loaded": True, "valid": True},
}
PAGE = """<!doctype html>
<html lang="en">
  <head><meta charset="utf-8"><title>Modeling Labs &amp; stand-in</title><link rel="icon" href="data:,"></head>
  <body>
    <form action="/login" method="post">
      <input name="username" autocomplete="username">
      <input name="password" type="password" autocomplete="current-password">
      <button>Log in</button>
    </form>
  </body>
</html>
"""


@dataclasses.dataclass
class Reply:
    data: Any = None  # a string goes out as it is, anything else as JSON
    status: int = 200
    content_type: str = "application/json"
    location: str | None = None
    #: "whole", or "slow" (a byte every 0.2 s), "endless" (as fast as they are taken), "cut" (half of it).
    manner: str = "whole"

    def body(self) -> bytes:
        return self.data.encode() if isinstance(self.data, str) else json.dumps(self.data).encode()


def information(**changes: Any) -> Reply:
    return Reply({**INFORMATION, **changes})


def health(compute: dict[str, Any] | None = None, **changes: Any) -> Reply:
    computes = {"2d2a0b1c": {**COMPUTE, **(compute or {})}}
    return Reply({**HEALTH, "computes": computes, **changes})


class Controller:
    """Replies by path. A list is given out one by one, its last one for ever."""

    def __init__(self) -> None:
        self.port = free_port()
        self.requests: list[tuple[str, str, str | None]] = []
        self.replies: dict[str, Reply | list[Reply]] = {}
        self._server: http.server.ThreadingHTTPServer | None = None

    def start(self) -> None:
        controller = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_args: Any) -> None:
                pass

            def do_GET(self) -> None:
                controller.answer(self, b"")

            def do_POST(self) -> None:
                controller.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def reset(self) -> None:
        self.requests.clear()
        self.replies = {"system_information": information(), "system_health": health()}
        if self._server is None:
            self.start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        name = handler.path.removeprefix(f"{API}/")
        self.requests.append((handler.command, handler.path, handler.headers.get("Authorization")))
        found = self.replies.get(name)
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        send(handler, found or self._usual(name, handler, body))

    def _usual(self, name: str, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> Reply:
        if name == "authenticate":
            right = json.loads(body) == {"username": USER, "password": PASSWORD}
            return (
                Reply(json.dumps(TOKEN))
                if right
                else Reply({"description": "Authentication failed!", "code": 403}, 403)
            )
        if name == "authok":
            right = handler.headers.get("Authorization") == f"Bearer {TOKEN}"
            return Reply(json.dumps("OK")) if right else Reply({"description": "no token", "code": 401}, 401)
        return Reply({"description": "Not Found", "code": 404}, 404)


def send(handler: http.server.BaseHTTPRequestHandler, reply: Reply) -> None:
    body = reply.body()
    handler.send_response(reply.status)
    handler.send_header("Content-Type", reply.content_type)
    if reply.location:
        handler.send_header("Location", reply.location)
    if reply.manner != "endless":
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        if reply.manner == "whole":
            handler.wfile.write(body)
        elif reply.manner == "cut":
            handler.wfile.write(body[: len(body) // 2])
        elif reply.manner == "slow":
            for byte in body:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.2)
        else:
            until = time.monotonic() + 30
            while time.monotonic() < until:
                handler.wfile.write(b" " * 65536)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# --- nginx ----------------------------------------------------------------------------------------------------------

SERVER = """
  server {{
    listen 127.0.0.1:{port}{tls};
    {certificate}
    root {folder}/html;
    location / {{ try_files $uri /index.html; }}
    location /api/ {{ proxy_pass http://127.0.0.1:{backend}; proxy_buffering off; proxy_read_timeout 60s; }}
    {more}
  }}
"""


@dataclasses.dataclass
class Site:
    """nginx with one server for each certificate, and the controller behind all of them."""

    controller: Controller
    authority: Authority
    certificates: dict[str, Issued]
    ports: dict[str, int]
    page: Path

    def url(self, name: str = "good", host: str = "localhost") -> str:
        return f"{'http' if name.startswith('plain') else 'https'}://{host}:{self.ports[name]}"

    def check(self, name: str = "good", host: str = "localhost", **options: Any) -> dict[str, Any]:
        """What cml_gui_check finds out about one of the servers, without starting Ansible."""
        if options.get("level") in ("auth", "health"):
            options = {"username": USER, "password": PASSWORD, **options}
        options.setdefault("trust", Trust(ca_path=self.ca_path))
        return Check(Wanted(parse_place(self.url(name, host)), **options)).run()

    @property
    def ca_path(self) -> str:
        return str(self.authority.path)


@contextlib.contextmanager
def serve(folder: Path, nginx: str, ports: dict[str, int] | None = None) -> Iterator[Site]:
    """`ports` gives servers a port that is wanted; the others take free ones."""
    authority = Authority(folder)
    here = ("localhost", "127.0.0.1")
    certificates = {
        "good": authority.issue("good", here),
        "expired": authority.issue("expired", here, days=(-30, -2)),
        "future": authority.issue("future", here, days=(2, 30)),
        "other_name": authority.issue("other-name", ("cml.example.com",)),
        "self_signed": authority.issue("self-signed", here, self_signed=True),
        "all_wrong": authority.issue("all-wrong", ("cml.example.com",), days=(-30, -2), self_signed=True),
    }
    controller = Controller()
    chosen = {name: free_port() for name in [*certificates, "plain", "plain_redirect"]}
    site = Site(controller, authority, certificates, {**chosen, **(ports or {})}, folder / "html" / "index.html")
    (folder / "html").mkdir()
    site.page.write_text(PAGE, encoding="utf-8")
    servers = ""
    for name, port in site.ports.items():
        found = certificates.get(name)
        servers += SERVER.format(
            port=port,
            tls=" ssl" if found else "",
            certificate=f"ssl_certificate {found.certificate}; ssl_certificate_key {found.key};" if found else "",
            folder=folder,
            backend=controller.port,
            more=f"return 301 https://localhost:{site.ports['good']}$request_uri;" if name == "plain_redirect" else "",
        )
    temporary = "".join(
        f"  {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(
        f"daemon off;\n{user}pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\nevents {{}}\nhttp {{\n"
        f"  access_log off;\n  types {{ text/html html; }}\n{temporary}{servers}}}\n",
        encoding="utf-8",
    )
    controller.reset()
    process = subprocess.Popen([nginx, "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        _await_port(process, site.ports["good"], folder / "error.log")
        yield site
    finally:
        process.terminate()
        process.wait(10)
        controller.stop()


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nginx does not run:\n{log.read_text() if log.exists() else ''}")


# --- a whole host ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def greeter(port: int, greeting: bytes) -> Iterator[None]:
    """A server that says something to everybody and hangs up, as far as a probe can see an SSH server or Cockpit."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(greeting)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


def main(folder: Path, nginx: str, scene: str, *command: str) -> int:
    """Run a command beside a CML host on its real ports; to be called in a network namespace of its own."""
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(serve(folder, nginx, {"good": 443, "plain_redirect": 80}))
        for port, greeting in ((22, b"SSH-2.0-stand-in\r\n"), (1122, b"SSH-2.0-OpenSSH_9.6\r\n"), (9090, b"")):
            if scene != "no-ssh" or port != 1122:
                stack.enter_context(greeter(port, greeting))
        if scene == "never-ready":
            site.controller.replies["system_information"] = information(ready=False)
            site.controller.replies["system_health"] = health({"kvm_vmx_enabled": False}, valid=False)
        elif scene == "down":
            site.controller.stop()
        environment = {**os.environ, "CML_USERNAME": USER, "CML_PASSWORD": PASSWORD, "CA_PATH": site.ca_path}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
