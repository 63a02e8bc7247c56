# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""How far a Cisco Modeling Labs controller has come, seen from its web server, and why not further."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import html
import re
import socket
import time
import typing as t
import urllib.parse

from ansible_collections.goldsmith.images.plugins.module_utils import _cml_browser, _cml_health, _https_client
from ansible_collections.goldsmith.images.plugins.module_utils._cml_version import Expectation, parse_version
from ansible_collections.goldsmith.images.plugins.module_utils._https_client import (
    Answer,
    HttpError,
    Place,
    Trust,
    printable,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline
from ansible_collections.goldsmith.images.plugins.module_utils._redact import Redactor

LEVELS = ("tcp", "web", "api", "ready", "auth", "health")
#: Beside the others: it needs the page, and no API.
BROWSER = ("tcp", "web", "browser")
API = "/api/v0"
LIMIT_BODY = 256 * 1024
LIMIT_PAGE = 64 * 1024
LIMIT_REDIRECTS = 5
#: Ports of a CML host; on those of SSH the server speaks first.
SERVICES = {22: "console server", 80: "web, redirects", 443: "web", 1122: "SSH of the host", 9090: "Cockpit"}
SSH_PORTS = (22, 1122)
BANNER_SECONDS = 5.0

_TLS_KINDS = ("certificate", "not_tls", "tls")

HINTS = {
    "unreachable": "See that the host runs, has this address, and that security group, firewall and route let this "
    "machine in. On EC2 with 'Instance reachability check failed' read the serial console.",
    "refused": "The host is up, but nothing listens on this port: see 'systemctl status nginx' and "
    "/var/log/virl2 on the host (its SSH is on port 1122).",
    "no_web": "Something accepts connections on this port, but does not answer as a web server: see that the port is "
    "right and the host not overloaded.",
    "tls_error": "Give ca_path or, for CML's own self-signed certificate, fingerprint (compare it with the one on "
    "the host first). validate_certs=false trusts anybody.",
    "web_only": "A web server answers, but not CML's API: see that this is the CML host, that no proxy or other "
    "virtual host answers in its place, and that CML is installed (package virl2 or cml2).",
    "page_broken": "The start page is served, but nobody can log in there: open it, and look at the browser's console.",
    "backend_down": "The web server is up, the controller behind it is not. It takes up to 10 minutes to start; "
    "after that see 'systemctl status virl2.target virl2-controller' and /var/log/virl2 on the host.",
    "not_ready": "The controller runs, but no compute host can start nodes yet. If this lasts, run kvm_check on the "
    "host, or give username and password here to learn the reason.",
    "auth_failed": "See username and password. The first account is made when the host is set up; "
    "see that this has finished (/etc/.virl2_unconfigured is gone).",
    "licensed_no": "Register the product: Tools, Licensing in the user interface.",
    "unhealthy": "See the services named, and /var/log/virl2 on the host.",
    "ports": "See that the services run ('ss -tln' on the host), and that security group and firewall let them in.",
    "no_kvm": "It will not become ready by waiting: no compute host can run VMs with KVM. On EC2 use a metal type, or "
    "a type with nested virtualisation switched on at launch; elsewhere switch on VT-x or AMD-V for this VM. "
    "kvm_check on the host says which.",
    "not_enough_cpus": "It will not become ready by waiting: no compute host has enough CPUs (CML wants 4 or more).",
}


class CmlError(Exception):
    """The check itself makes no sense as it was asked for."""


class _NotYet(Exception):
    """The next level was not reached."""

    def __init__(self, state: str, text: str, final: bool = False) -> None:
        super().__init__(text)
        self.state = state
        self.text = text
        #: Whether waiting cannot change it.
        self.final = final


@dataclasses.dataclass(frozen=True)
class Wanted:
    place: Place
    trust: Trust = Trust()
    level: str = "ready"
    timeout: float = 15.0
    wait: float = 0.0
    interval: float = 5.0
    username: str | None = None
    password: str | None = None
    version: Expectation | None = None
    ports: t.Sequence[int] = ()
    kvm_usable: bool | None = None
    browser_path: str | None = None

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.interval <= 0:
            name = "timeout" if self.timeout <= 0 else "interval"
            raise CmlError(f"{name} must be greater than 0, not {getattr(self, name)}")
        if self.wait < 0:
            raise CmlError(f"wait must not be less than 0, but is {self.wait}")
        if self.level in ("auth", "health") and not (self.username and self.password):
            raise CmlError(
                f"level {self.level} needs username and password (or CML_USERNAME and CML_PASSWORD in the environment)"
            )
        if self.version is not None and self.level in ("tcp", "web", "browser"):
            raise CmlError(f"expect_version contradicts level {self.level}: the API tells the version, so api at least")
        bad = [port for port in self.ports if not 0 < port < 65536]
        if bad:
            raise CmlError(f"check_ports: not a port: {bad[0]} (1 to 65535)")


@dataclasses.dataclass
class Seen:
    """What one attempt found."""

    state: str = "unreachable"
    level: str | None = None
    text: str = ""
    error: str | None = None
    final: bool = False
    page: dict[str, t.Any] | None = None
    browser: _cml_browser.Page | None = None
    api: dict[str, t.Any] | None = None
    version: str | None = None
    ready: bool | None = None
    certificate: _https_client.Certificate | None = None
    health: _cml_health.Health | None = None
    obstacle: str | None = None
    ports: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def way_to(level: str) -> tuple[str, ...]:
    """The levels to go through, this one at the end."""
    return BROWSER if level == "browser" else LEVELS[: LEVELS.index(level) + 1]


class Check:
    """Attempts until the wanted level is reached, waiting makes no sense, or the time is over."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.attempts = 0
        self._place = wanted.place
        self._token = ""
        self._refused = False
        self._obstacles: list[str | None] = []
        self._secrets = [wanted.password] if wanted.password else []

    def run(self) -> dict[str, t.Any]:
        """The module's return values."""
        start = time.monotonic()
        end = start + self.wanted.wait
        while True:
            left = end - time.monotonic()
            seen = self._attempt(Deadline(min(self.wanted.timeout, left) if self.wanted.wait else self.wanted.timeout))
            if not seen.problems or seen.final or time.monotonic() + self.wanted.interval >= end:
                return self._report(seen, round(time.monotonic() - start, 2))
            time.sleep(self.wanted.interval)

    def _attempt(self, deadline: Deadline) -> Seen:
        self.attempts += 1
        seen = Seen()
        with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
            ports = [pool.submit(check_port, self.wanted.place.host, port, deadline) for port in self.wanted.ports]
            try:
                self._climb(seen, deadline)
            except _NotYet as error:
                seen.state, seen.text, seen.final = error.state, error.text, error.final
            except HttpError as error:
                seen.state, seen.text, seen.error = _state_of(error, seen), error.text, error.kind
                seen.final = error.kind in _TLS_KINDS
                seen.certificate = error.certificate or seen.certificate
            except socket.timeout:
                seen.state = "no_web" if seen.level in (None, "tcp") else "backend_down"
                seen.text, seen.error = f"{self.wanted.place}: no complete answer in time", "timeout"
            seen.ports = [port.result() for port in ports]
        self._judge(seen)
        return seen

    # --- one level after the other ----------------------------------------------------------------------------------

    def _climb(self, seen: Seen, deadline: Deadline) -> None:
        steps = {
            "tcp": self._tcp,
            "web": self._web,
            "browser": self._browser,
            "api": self._api,
            "ready": self._ready,
            "auth": self._auth,
            "health": self._health,
        }
        for level in way_to(self.wanted.level):
            steps[level](seen, deadline)
            seen.level = level

    def _tcp(self, seen: Seen, deadline: Deadline) -> None:
        _https_client.connect(self.wanted.place.host, self.wanted.place.port, deadline).close()
        seen.state = "reachable"

    def _web(self, seen: Seen, deadline: Deadline) -> None:
        answer = self._get("/", seen, deadline, limit=LIMIT_PAGE)
        seen.page = {**_summary(answer), "title": _title(answer)}
        self._place = answer.place
        seen.state = "web"
        if self.wanted.level not in ("web", "browser"):
            return  # the backend of a host answers without having pages
        if answer.status >= 500:
            raise _NotYet("backend_down", f"{answer.place}/ answers with status {answer.status}")
        if answer.status != 200 or answer.content_type != "text/html":
            raise _NotYet("web_only", f"{answer.place}/ is not a page: {_said(answer)}")

    def _browser(self, seen: Seen, deadline: Deadline) -> None:
        trusted_otherwise = not self.wanted.trust.validate or self.wanted.trust.ca_path or self.wanted.trust.fingerprint
        try:
            seen.browser = _cml_browser.look(
                self._place, "/", deadline, self.wanted.browser_path, ignore_certificates=bool(trusted_otherwise)
            )
        except _cml_browser.BrowserError as error:
            raise CmlError(str(error)) from error
        if seen.browser.problems:
            raise _NotYet("page_broken", f"{self._place}/: " + "; ".join(seen.browser.problems))

    def _api(self, seen: Seen, deadline: Deadline) -> None:
        answer = self._get(f"{API}/system_information", seen, deadline)
        seen.api = _summary(answer)
        self._place = answer.place
        data = _json_of(answer)
        if not isinstance(data, dict) or not isinstance(data.get("ready"), bool) or "version" not in data:
            raise _NotYet(
                "web_only", f"{_url(answer)} answers in JSON, but without version and ready: it is not CML's API"
            )
        seen.version = printable(str(data["version"]))
        seen.ready = data["ready"]
        seen.state = "ready" if seen.ready else "not_ready"

    def _ready(self, seen: Seen, deadline: Deadline) -> None:
        if seen.ready:
            return
        known = self._why_not_ready(seen, deadline)
        seen.obstacle = known
        self._obstacles.append(known)
        # A report from a host that just starts may be wrong once; what the caller knows of KVM is not.
        lasting = self.wanted.kvm_usable is False or (known is not None and self._obstacles[-2:] == [known, known])
        raise _NotYet("not_ready", f"{self.wanted.place}: the controller says that it is not ready", final=lasting)

    def _why_not_ready(self, seen: Seen, deadline: Deadline) -> str | None:
        if self.wanted.kvm_usable is False:
            return "no_kvm"
        if not (self.wanted.username and self.wanted.password) or self._refused:
            return None
        try:
            seen.health = self._read_health(seen, self._log_in(deadline), deadline)
        except (_NotYet, HttpError, socket.timeout):
            return None
        return _cml_health.lasting_obstacle(seen.health)

    def _auth(self, seen: Seen, deadline: Deadline) -> None:
        token = self._log_in(deadline)
        answer = self._get(f"{API}/authok", seen, deadline, token=token)
        if answer.status != 200:
            final = answer.status in (401, 403)
            state = "auth_failed" if final else "backend_down" if answer.status >= 500 else "web_only"
            raise _NotYet(state, f"the log-in succeeded, but {_url(answer)} answers with {answer.status}", final)
        self._token = token
        seen.state = "ok"

    def _health(self, seen: Seen, deadline: Deadline) -> None:
        seen.health = self._read_health(seen, self._token, deadline)
        found = _cml_health.defects(seen.health)
        if found:
            raise _NotYet("unhealthy", f"{self.wanted.place}: " + "; ".join(found))
        if seen.health["licensed"] is False:
            raise _NotYet("licensed_no", f"{self.wanted.place}: the product is not licensed")
        if not seen.health["valid"]:
            raise _NotYet("unhealthy", f"{self.wanted.place}: the health report does not say that all is valid")
        seen.state = "ok"

    # --- requests ---------------------------------------------------------------------------------------------------

    def _get(
        self, path: str, seen: Seen, deadline: Deadline, token: str | None = None, limit: int = LIMIT_BODY
    ) -> Answer:
        """Follows redirects on the same host, from HTTP to HTTPS but not back. A token goes nowhere else."""
        place = self.wanted.place
        for _redirect in range(LIMIT_REDIRECTS + 1):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            answer = _https_client.request(place, path, self.wanted.trust, deadline, limit, headers)
            seen.certificate = answer.certificate or seen.certificate
            following = _redirected(answer)
            if following is None:
                return answer
            place, path = following
        raise _NotYet("web_only", f"{self.wanted.place}{path}: more than {LIMIT_REDIRECTS} redirects")

    def _log_in(self, deadline: Deadline) -> str:
        # Where the questions without a password have led: to HTTPS, if the host redirects to it.
        place = self._place
        if place.scheme == "http" and not place.is_loopback:
            raise _NotYet("auth_failed", f"the password is not sent to {place} over plain HTTP: use https", final=True)
        data = {"username": self.wanted.username, "password": self.wanted.password}
        path = f"{API}/authenticate"
        answer = _https_client.request(place, path, self.wanted.trust, deadline, LIMIT_BODY, data=data)
        if answer.status in (401, 403):
            self._refused = True
            text = f"{_url(answer)} refuses the credentials of {self.wanted.username} (status {answer.status})"
            raise _NotYet("auth_failed", text, final=True)
        token = _json_of(answer)
        if isinstance(token, dict):
            token = token.get("token")
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]{1,16384}", token):
            raise _NotYet(
                "auth_failed", f"{_url(answer)} answers without a token: it is not the API of a known release"
            )
        self._secrets.append(token)
        return token

    def _read_health(self, seen: Seen, token: str, deadline: Deadline) -> _cml_health.Health:
        answer = self._get(f"{API}/system_health", seen, deadline, token=token)
        return _cml_health.read_health(_json_of(answer))

    # --- the verdict ------------------------------------------------------------------------------------------------

    def _judge(self, seen: Seen) -> None:
        wanted = self.wanted
        if seen.level != wanted.level:
            seen.problems.append(f"level {wanted.level} is not reached ({seen.state}): {seen.text}")
        if wanted.version is not None and seen.version is not None:
            try:
                parse_version(seen.version)
                fits = wanted.version.holds(seen.version)
            except ValueError:
                fits = False
            if not fits:
                seen.problems.append(f"the version is {seen.version}, expected {wanted.version.text}")
                seen.final = True
        for port in seen.ports:
            if port["state"] != "open":
                seen.problems.append(f"port {port['port']} ({port['service']}) is not open: {port['state']}")
            elif port["port"] in SSH_PORTS and not (port["banner"] or "").startswith("SSH-"):
                seen.problems.append(
                    f"port {port['port']} ({port['service']}) is open, but no SSH server answers there"
                )

    def _report(self, seen: Seen, elapsed: float) -> dict[str, t.Any]:
        if seen.level != self.wanted.level:
            hint = HINTS.get(seen.obstacle or seen.state, "")
        else:
            hint = HINTS["ports"] if any(problem.startswith("port ") for problem in seen.problems) else ""
        # What a server sends may repeat what was sent to it.
        clean = Redactor(self._secrets).data
        return {
            "ok": not seen.problems,
            "state": seen.state,
            "level": seen.level,
            "error_class": seen.error,
            "problems": clean(seen.problems),
            "hint": hint,
            "page": clean(seen.page),
            "browser": clean(dataclasses.asdict(seen.browser)) if seen.browser else None,
            "api": clean(seen.api),
            "version": clean(seen.version),
            "ready": seen.ready,
            "never_ready_reason": seen.obstacle,
            "certificate": clean(dataclasses.asdict(seen.certificate)) if seen.certificate else None,
            "health": clean(seen.health),
            "ports": clean(seen.ports),
            "attempts": self.attempts,
            "elapsed": elapsed,
        }


def _state_of(error: HttpError, seen: Seen) -> str:
    if error.kind in _TLS_KINDS:
        return "tls_error"
    if seen.level is None:
        return "refused" if error.kind == "refused" else "unreachable"
    return "no_web" if seen.level == "tcp" else "backend_down"


def _redirected(answer: Answer) -> tuple[Place, str] | None:
    if answer.status not in (301, 302, 303, 307, 308) or not answer.location:
        return None
    try:
        parts = urllib.parse.urlsplit(urllib.parse.urljoin(f"{answer.place}{answer.path}", answer.location))
        place = _https_client.parse_place(f"{parts.scheme}://{parts.netloc}")
    except ValueError:
        return None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    weaker = answer.place.scheme == "https" and place.scheme == "http"
    if place.host != answer.place.host or weaker or not re.fullmatch(r"[!-~]+", path):
        return None
    return place, path


def _summary(answer: Answer) -> dict[str, t.Any]:
    return {
        "url": _url(answer),
        "status": answer.status,
        "content_type": printable(answer.content_type),
        "location": printable(answer.location) if answer.location else None,
    }


def _url(answer: Answer) -> str:
    return printable(f"{answer.place}{answer.path}", 2000)


def _said(answer: Answer) -> str:
    where = f" to {printable(answer.location)}" if answer.location else ""
    return f"status {answer.status}{where}, content type {printable(answer.content_type) or 'unknown'}"


def _title(answer: Answer) -> str | None:
    text = answer.body.decode("utf-8", "replace")
    match = re.search(r"<title[^<>]*>([^<]{1,1000})", text, re.IGNORECASE)
    return printable(" ".join(html.unescape(match[1]).split())) if match else None


def _json_of(answer: Answer) -> t.Any:
    """What the API answers; anything else is some other server's, or the web server's own."""
    if answer.status in (500, 502, 503, 504):
        raise _NotYet("backend_down", f"{_url(answer)} answers with status {answer.status}")
    if answer.status != 200:
        raise _NotYet("web_only", f"{_url(answer)} is not the API: {_said(answer)}")
    if answer.truncated:
        raise _NotYet("web_only", f"{_url(answer)} is not the API: the answer is longer than {LIMIT_BODY} bytes")
    try:
        return answer.json()
    except ValueError:
        raise _NotYet("web_only", f"{_url(answer)} is not the API: no JSON, but {_said(answer)}") from None


def check_port(host: str, port: int, deadline: Deadline) -> dict[str, t.Any]:
    """Whether a port accepts connections, and what an SSH server says first."""
    banner = None
    try:
        with _https_client.connect(host, port, deadline) as connection:
            state = "open"
            if port in SSH_PORTS:
                banner = _banner(connection, deadline)
    except HttpError as error:
        state = error.kind
    except socket.timeout:
        state = "timeout"
    return {"port": port, "service": SERVICES.get(port, "other"), "state": state, "banner": banner}


def _banner(connection: socket.socket, deadline: Deadline) -> str:
    try:
        connection.settimeout(min(BANNER_SECONDS, deadline.left()))
        first = connection.recv(255).decode("latin-1").splitlines() or [""]
    except OSError:
        return ""
    return printable(first[0])
