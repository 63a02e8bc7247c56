# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""A file from the network with a known digest: resumed where it was cut, checked before anybody sees it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import tempfile
import time
import typing as t
import urllib.error
import urllib.parse
from pathlib import Path

from ansible.module_utils.urls import open_url
from ansible_collections.goldsmith.images.plugins.module_utils._command import find_program

if t.TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 1024 * 1024
AGENT = "goldsmith.images"
#: Seconds without a single byte after which a connection counts as dead.
IDLE_SECONDS = 30
#: A transfer that was cut is continued as long as each connection brings something.
FRUITLESS_CONNECTIONS = 3
LIMIT_TEXT = 4 * 1024 * 1024
SIGNATURE_SUFFIXES = (".sign", ".gpg", ".sig", ".asc")
_LENGTHS = {64: "sha256", 128: "sha512"}


class DownloadError(Exception):
    """The file cannot be had or is not the right one; the message says which."""


@dataclasses.dataclass(frozen=True)
class Checksum:
    """An algorithm and the digest the file must have."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def parse_checksum(text: str) -> Checksum:
    algorithm, _colon, digest = text.strip().partition(":")
    digest = digest.lower()
    length = {name: size for size, name in _LENGTHS.items()}.get(algorithm)
    if length is None or not re.fullmatch(f"[0-9a-f]{{{length}}}", digest):
        raise DownloadError(f"not a checksum: {text!r} (give sha256:<64 hex digits> or sha512:<128 hex digits>)")
    return Checksum(algorithm, digest)


def parse_checksum_file(text: str, name: str) -> Checksum:
    """The line for a file in SHA256SUMS, SHA512SUMS or the BSD form `SHA256 (name) = digest`."""
    for line in text.splitlines():
        plain = re.fullmatch(r"([0-9A-Fa-f]{64}|[0-9A-Fa-f]{128})\s+[ *]?(\S.*?)\s*", line)
        bsd = re.fullmatch(r"SHA(?:256|512)\s*\((.+)\)\s*=\s*([0-9A-Fa-f]{64}|[0-9A-Fa-f]{128})\s*", line)
        digest, found = (plain[1], plain[2]) if plain else (bsd[2], bsd[1]) if bsd else ("", "")
        if digest and found.removeprefix("./") == name:
            return Checksum(_LENGTHS[len(digest)], digest.lower())
    raise DownloadError(f"the checksum file has no line for {name!r}")


def file_name(url: str) -> str:
    """The name of the file that a URL means."""
    parts = urllib.parse.urlsplit(url)
    name = urllib.parse.unquote(parts.path.rsplit("/", 1)[-1])
    if parts.scheme not in ("http", "https") or not parts.hostname or not name:
        raise DownloadError(f"not the address of a file: {url!r} (give http:// or https://)")
    return name


# --- signatures -----------------------------------------------------------------------------------------------------


def signed_checksum(
    checksum_url: str, keyring: Path, name: str, signature_url: str | None = None, timeout: float = IDLE_SECONDS
) -> Checksum:
    """The checksum from a checksum file whose signature a key of the keyring made.

    The signature is in the file itself, or in a file of its own: the one that is given, else the usual names.
    """
    if not keyring.is_file():
        packages = "debian-archive-keyring and ubuntu-keyring"
        raise DownloadError(f"the keyring {keyring} does not exist: the packages {packages} have those of the makers")
    content = fetch_text(checksum_url, timeout)
    if content.startswith(b"-----BEGIN PGP SIGNED MESSAGE-----"):
        return parse_checksum_file(_gpgv(keyring, content, None, checksum_url).decode(), name)
    candidates = [signature_url] if signature_url else [checksum_url + suffix for suffix in SIGNATURE_SUFFIXES]
    tried = []
    for candidate in candidates:
        try:
            signature = fetch_text(candidate, timeout)
        except DownloadError as error:
            tried.append(str(error))
            continue
        _gpgv(keyring, content, signature, checksum_url)
        return parse_checksum_file(content.decode(), name)
    raise DownloadError(f"{checksum_url} is not signed, and its signature was not found: {'; '.join(tried)}")


def _gpgv(keyring: Path, content: bytes, signature: bytes | None, what: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="goldsmith-gpgv-") as name:
        folder = Path(name)
        ring, message, output = folder / "keyring.gpg", folder / "message", folder / "output"
        ring.write_bytes(dearmor(keyring.read_bytes()))
        message.write_bytes(content)
        command = [find_program("gpgv", "gpgv"), "--homedir", name, "--keyring", str(ring)]
        if signature is None:
            command += ["--output", str(output), str(message)]
        else:
            (folder / "signature").write_bytes(signature)
            command += [str(folder / "signature"), str(message)]
        result = subprocess.run(command, check=False, capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"})
        if result.returncode != 0:
            raise DownloadError(f"the signature of {what} is not good with {keyring}: {result.stderr.strip()}")
        return output.read_bytes() if signature is None else content


def dearmor(data: bytes) -> bytes:
    """The binary form of a keyring; gpgv reads no other."""
    if b"-----BEGIN PGP PUBLIC KEY BLOCK-----" not in data:
        return data
    result = b""
    for block in re.findall(
        r"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", data.decode(), re.DOTALL
    ):
        body = re.split(r"\r?\n\r?\n", block, maxsplit=1)[-1]
        # The last line, with an equals sign in front, is a checksum of the armour.
        lines = [line.strip() for line in body.splitlines() if line.strip() and not line.startswith("=")]
        result += base64.b64decode("".join(lines))
    return result


# --- transfers ------------------------------------------------------------------------------------------------------


def fetch_text(url: str, timeout: float = IDLE_SECONDS) -> bytes:
    """A small file, whole."""
    try:
        with open_url(url, timeout=timeout, http_agent=AGENT) as response:
            data: bytes = response.read(LIMIT_TEXT + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(_reason(url, error)) from error
    if len(data) > LIMIT_TEXT:
        raise DownloadError(f"{url} is too large for a checksum file or signature")
    return data


def probe(url: str, timeout: float = IDLE_SECONDS) -> int | None:
    """Ask whether the server has the file; returns its size if the server says so."""
    try:
        with open_url(url, method="HEAD", timeout=timeout, http_agent=AGENT) as response:
            length = response.headers.get("Content-Length")
            return int(length) if length and length.isdigit() else None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(_reason(url, error)) from error


def download(
    url: str,
    checksum: Checksum,
    folder: Path,
    deadline: float,
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
    idle: float = IDLE_SECONDS,
) -> Path:
    """Download into `folder`, which keeps what came so far if this is interrupted, and check the digest.

    A wrong digest after a resumed transfer can be the fault of the old part, so that is tried once more from the
    beginning; a wrong digest of a fresh transfer is final, and nothing stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "data"
    resumed = target.exists() and target.stat().st_size > 0
    _transfer(url, target, folder / "validator.json", deadline, progress, idle)
    found = _digest(target, checksum.algorithm)
    if found != checksum.digest and resumed:
        target.unlink()
        _transfer(url, target, folder / "validator.json", deadline, progress, idle)
        found = _digest(target, checksum.algorithm)
    if found != checksum.digest:
        size = target.stat().st_size
        target.unlink()
        raise DownloadError(
            f"the checksum of {url} does not match: expected {checksum}, found {checksum.algorithm}:{found} "
            f"({size} bytes). The file has changed, or somebody has changed it: nothing of it was kept"
        )
    return target


def _transfer(
    url: str, target: Path, validator: Path, deadline: float, progress: Callable[[int, int | None], None], idle: float
) -> None:
    fruitless = 0
    while True:
        before = target.stat().st_size if target.exists() else 0
        try:
            if _connection(url, target, validator, deadline, progress, idle):
                return
            reason = "the connection was cut"
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise DownloadError(_reason(url, error)) from error
            reason = _reason(url, error)
        done = target.stat().st_size if target.exists() else 0
        fruitless = fruitless + 1 if done <= before else 0
        if fruitless >= FRUITLESS_CONNECTIONS:
            raise DownloadError(f"{reason}; {done} bytes are kept, the next run continues there")


def _connection(
    url: str, target: Path, validator: Path, deadline: float, progress: Callable[[int, int | None], None], idle: float
) -> bool:
    """One connection; returns whether the file is complete."""
    have = target.stat().st_size if target.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    known = _read_validator(validator, url)
    if have and known:
        # If-Range: a file that has changed in the meantime comes whole, not as the rest of another one.
        headers.update({"Range": f"bytes={have}-", "If-Range": known})
    elif have:
        have = 0
    try:
        response = open_url(url, headers=headers, timeout=idle, http_agent=AGENT, decompress=False)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            # Nothing is left to send: the digest decides whether that was all of it.
            return True
        raise
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = have if continued else 0
        if continued and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            raise DownloadError(f"{url}: the server sent another range than it was asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        etag = response.headers.get("ETag") or ""
        strong = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        validator.write_text(json.dumps({"url": url, "validator": strong}), encoding="utf-8")
        with target.open("ab" if continued else "wb") as file:
            done = start
            while block := response.read(BLOCK):
                file.write(block)
                done += len(block)
                progress(done, total)
                if time.monotonic() > deadline:
                    raise DownloadError(f"{url}: not complete within the time limit; {done} bytes are kept")
        return total is None or done >= total


def _read_validator(path: Path, url: str) -> str | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    value = data.get("validator") if isinstance(data, dict) and data.get("url") == url else None
    return value if isinstance(value, str) else None


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _reason(url: str, error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{url}: the server answered {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return f"{url}: the name of the server is not known ({cause.strerror})"
    text = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause) or repr(cause)
    return f"{url}: {text}"
