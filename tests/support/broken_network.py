# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small internet in namespaces of this machine, with all that is wrong in real ones.

client 192.0.2.2 --- .1 router 198.51.100.1 --- .2 server    names, HTTP, TLS, time
inside 192.0.3.2 --- .1 router                               no default route, only the router's proxy
six 2001:db8:6::2 --- ::1 router                             no IPv4
                        router 203.0.113.1 --- .2 narrow     the router's link carries 1280 bytes
island                                                       nothing at all
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

from ansible_collections.goldsmith.images.tests.support import network
from ansible_collections.goldsmith.images.tests.support.certificates import Authority
from ansible_collections.goldsmith.images.tests.support.network import Namespace, address, cable

SERVER = "198.51.100.2"
NGINX = """
pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off; worker_processes 1; user root;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    large_client_header_buffers 4 64k;
    server {{
        listen 80; listen [::]:80; root {folder}/www;
        location = /generate_204 {{ return 204; }}
        location = /hello {{ default_type text/plain; return 200 "hello world"; }}
        location = /moved {{ return 302 http://{server}/hello; }}
        location = /html {{ default_type text/html; return 200 "<h1>Log in</h1>"; }}
    }}
    server {{ listen 8080; return 302 http://portal.example.test/login; }}
    server {{ listen 8081; default_type text/html; location / {{ return 200 "<h1>Welcome to the hotel</h1>"; }} }}
    server {{ listen 443 ssl; ssl_certificate {folder}/good.pem; ssl_certificate_key {folder}/good.key;
              location = /hello {{ return 200 "hello"; }} }}
    server {{ listen 8444 ssl; ssl_certificate {folder}/expired.pem; ssl_certificate_key {folder}/expired.key; }}
    server {{ listen 8445 ssl; ssl_certificate {folder}/future.pem; ssl_certificate_key {folder}/future.key; }}
    server {{ listen 8446 ssl; ssl_certificate {folder}/other.pem; ssl_certificate_key {folder}/other.key; }}
}}
"""

#: What the certificates are made for.
NAMES = ("www.example.test", *(f"{name}.eu-central-1.amazonaws.com" for name in ("ssm", "ssmmessages", "ec2messages")))

TINYPROXY = "Port 3128\nTimeout 60\nMaxClients 20\nConnectPort 443\n"


class Net:
    """All machines, by name."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        for name in ("router", "client", "server", "inside", "six", "narrow", "island"):
            setattr(self, name, stack.enter_context(closing(Namespace(name, folder))))

    router: Namespace
    client: Namespace
    server: Namespace
    inside: Namespace
    six: Namespace
    narrow: Namespace
    island: Namespace

    def lay_cables(self) -> None:
        cable(self.client, "eth0", self.router, "c0")
        cable(self.server, "eth0", self.router, "s0")
        cable(self.inside, "eth0", self.router, "i0")
        cable(self.six, "eth0", self.router, "x0")
        cable(self.narrow, "eth0", self.router, "n0")
        address(self.router, "c0", "192.0.2.1/24", "2001:db8:1::1/64", "169.254.169.254/32")
        address(self.router, "s0", "198.51.100.1/24", "2001:db8:2::1/64")
        address(self.router, "i0", "192.0.3.1/24")
        address(self.router, "x0", "2001:db8:6::1/64")
        address(self.router, "n0", "203.0.113.1/24")
        address(self.client, "eth0", "192.0.2.2/24", "2001:db8:1::2/64")
        address(self.server, "eth0", f"{SERVER}/24", "198.51.100.3/24", "2001:db8:2::2/64")
        address(self.inside, "eth0", "192.0.3.2/24")
        address(self.six, "eth0", "2001:db8:6::2/64")
        address(self.narrow, "eth0", "203.0.113.2/24", "203.0.113.3/24")
        self.router.ip("link set n0 mtu 1280")
        self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.router.ip("route add blackhole 198.18.1.0/24")
        self.router.ip("route add unreachable 198.18.2.0/24")
        for machine, gateway in (
            (self.client, "192.0.2.1"),
            (self.server, "198.51.100.1"),
            (self.narrow, "203.0.113.1"),
        ):
            machine.ip(f"route add default via {gateway}")
        for machine, gateway in (
            (self.client, "2001:db8:1::1"),
            (self.server, "2001:db8:2::1"),
            (self.six, "2001:db8:6::1"),
        ):
            machine.ip(f"-6 route add default via {gateway}")
        self.filter_server()
        self.narrow.nft(
            "chain in { type filter hook input priority 0; ip daddr 203.0.113.3 icmp type echo-request drop; }"
        )

    def filter_server(self, more: str = "") -> None:
        self.server.nft(
            "chain in { type filter hook input priority 0;\n"
            "tcp dport 8443 drop\ntcp dport 8442 reject with icmpx type admin-prohibited\n"
            f"ip daddr 198.51.100.3 icmp type echo-request drop\n}}\n{more}"
        )

    def start_servers(self) -> None:
        hosts = self.folder / "hosts"
        hosts.write_text("".join(f"198.51.100.{number} big.example.test\n" for number in range(1, 200)))
        folder = self.folder / "nginx"
        folder.mkdir()
        releases(folder / "www")
        certify(folder)
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, server=SERVER))
        nginx = self.server.start("nginx", "-c", folder / "nginx.conf", "-e", folder / "error.log")
        dnsmasq = [
            "dnsmasq",
            "--keep-in-foreground",
            "--no-hosts",
            "--no-resolv",
            "--user=root",
            "--bind-interfaces",
            "--pid-file=",
            "--log-facility=-",
        ]
        names = [
            f"--host-record=www.example.test,{SERVER},2001:db8:2::2",
            f"--address=/amazonaws.com/{SERVER}",
            f"--host-record=four.example.test,{SERVER}",
            "--host-record=portal.example.test,192.0.2.1",
            f"--addn-hosts={hosts}",
        ]
        self.server.start(
            *dnsmasq, "--conf-file=/dev/null", "--local=/#/", *names, f"--listen-address={SERVER},2001:db8:2::2"
        )
        self.server.start(
            *dnsmasq, "--conf-file=/dev/null", "--port=5301", "--address=/#/198.51.100.9", f"--listen-address={SERVER}"
        )
        for port, behaviour in ((5302, "servfail"), (5303, "garbage"), (5304, "silent")):
            self.serve(self.server, "dns", SERVER, port, behaviour)
        for port, ahead in ((123, 0), (1230, 3600)):
            self.serve(self.server, "sntp", SERVER, port, str(ahead))
        behaviours = ("silent", "endless_head", "endless_body", "endless_chunks", "drip", "not_http", "gate:12")
        for port, behaviour in enumerate(behaviours, 9001):
            self.serve(self.server, "tcp", SERVER, port, behaviour)
        self.serve(self.narrow, "tcp", "203.0.113.3", 80, "silent")
        self.serve(self.router, "imds", "169.254.169.254", 80, "v2")
        self.serve(self.router, "imds", "169.254.169.254", 81, "v1")
        self.serve(self.router, "imds", "169.254.169.254", 82, "disabled")
        for port, more in ((3128, ""), (3129, "BasicAuth user secret-word\n")):
            conf = self.folder / f"tinyproxy-{port}.conf"
            conf.write_text(TINYPROXY.replace("3128", str(port)) + more)
            self.router.start("tinyproxy", "-d", "-c", conf)
        for machine in (self.client, self.inside, self.router):
            machine.file("/etc/resolv.conf", f"search corp.test\nnameserver {SERVER}\noptions timeout:2 attempts:2\n")
        self.six.file("/etc/resolv.conf", "nameserver 2001:db8:2::2\noptions timeout:2 attempts:2\n")
        for port in (53, 80, 443, *range(9001, 9008)):
            self.server.wait_for_port(port)
        for port in (53, 123, 1230, 5301, 5302, 5303, 5304):
            self.server.wait_for_port(port, "udp")
        for port in (80, 81, 82, 3128, 3129):
            self.router.wait_for_port(port)
        self.narrow.wait_for_port(80)
        assert nginx.poll() is None

    def serve(self, machine: Namespace, *arguments: str | int) -> None:
        machine.start(sys.executable, "-I", network.SERVERS, *map(str, arguments))


def certify(folder: Path) -> None:
    """good, expired, future, and other, which an authority has signed that only both.pem knows."""
    known, inspecting = Authority(folder), Authority(folder, "Inspecting proxy")
    (folder / "both.pem").write_bytes(known.path.read_bytes() + inspecting.path.read_bytes())
    known.issue("good", NAMES)
    known.issue("expired", NAMES, days=(-3, -1))
    known.issue("future", NAMES, days=(1, 9))
    inspecting.issue("other", NAMES)


def releases(folder: Path) -> None:
    """Release files: valid, from the future, past its Valid-Until, and none at all."""
    now = time.time()
    for suite, date, until in (
        ("good", now - 86400, now + 86400),
        ("future", now + 86400, now + 2 * 86400),
        ("expired", now - 9 * 86400, now - 2 * 86400),
    ):
        path = folder / "debian" / "dists" / suite / "InRelease"
        path.parent.mkdir(parents=True)
        stamps = [time.strftime("%a, %d %b %Y %H:%M:%S UTC", time.gmtime(moment)) for moment in (date, until)]
        path.write_text(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n"
            f"Origin: Test\nSuite: {suite}\nDate: {stamps[0]}\nValid-Until: {stamps[1]}\nSHA256:\n"
        )
    page = folder / "debian" / "dists" / "page" / "InRelease"
    page.parent.mkdir()
    page.write_text("<html><body>Please log in</body></html>")
