# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads from a server on loopback that cuts and changes its files; signatures by the real gpg and gpgv."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _download
from ansible_collections.goldsmith.images.plugins.module_utils._download import Checksum, DownloadError

NAME = "disk.img"
QEMU_IMG = shutil.which("qemu-img")
needs_qemu_img = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")


@dataclasses.dataclass
class Server:
    """What is served, how badly, and what was asked for."""

    files: dict[str, bytes]
    url: str = ""
    cut_after: int | None = None
    ranges: bool = True
    status: int | None = None
    requests: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)

    def address(self, name: str = NAME) -> str:
        return f"{self.url}/{name}"

    def asked(self) -> list[str | None]:
        return [range_ for method, range_ in self.requests if method == "GET"]


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server({NAME: os.urandom(3_000_000)})

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            asked = self.headers.get("Range")
            state.requests.append((self.command, asked))
            data = state.files.get(self.path.lstrip("/"))
            if state.status or data is None:
                self.send_error(state.status or 404)
                return
            etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            start = 0
            if asked and state.ranges and self.headers.get("If-Range") == etag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(data):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", etag)
            self.end_headers()
            if body:
                part = data[start:]
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(part if state.cut_after is None else part[: state.cut_after])
            self.close_connection = True

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{found.server_port}"
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield state
    found.shutdown()
    thread.join()
    found.server_close()


def checksum_of(data: bytes, algorithm: str = "sha256") -> Checksum:
    return Checksum(algorithm, hashlib.new(algorithm, data).hexdigest())


def get(server: Server, folder: Path, checksum: Checksum | None = None) -> Path:
    checksum = checksum or checksum_of(server.files[NAME])
    return _download.download(server.address(), checksum, folder, time.monotonic() + 30, idle=5)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_whole_file(server: Server, tmp_path: Path, algorithm: str) -> None:
    data = server.files[NAME]
    assert get(server, tmp_path, checksum_of(data, algorithm)).read_bytes() == data
    assert server.asked() == [None]


def test_cut_transfer_continues_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1_000_000
    assert get(server, tmp_path).read_bytes() == server.files[NAME]
    assert server.asked() == [None, "bytes=1000000-", "bytes=2000000-"]


def test_next_run_continues(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1_000_000
    server.ranges = True
    with pytest.raises(DownloadError, match="time limit"):
        _download.download(server.address(), checksum_of(server.files[NAME]), tmp_path, time.monotonic() - 1)
    server.cut_after = None
    assert get(server, tmp_path).read_bytes() == server.files[NAME]
    assert server.asked()[1] == "bytes=1000000-"


def test_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "data").write_bytes(server.files[NAME][:1000])
    (tmp_path / "validator.json").write_text(f'{{"url": "{server.address()}", "validator": "x"}}')
    assert get(server, tmp_path).read_bytes() == server.files[NAME]


def test_file_that_changed_between_two_runs_is_not_mixed(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1_000_000
    with pytest.raises(DownloadError, match="time limit"):
        _download.download(server.address(), checksum_of(server.files[NAME]), tmp_path, time.monotonic() - 1)
    server.cut_after = None
    server.files[NAME] = os.urandom(2_500_000)
    assert get(server, tmp_path).read_bytes() == server.files[NAME]


def test_damaged_old_part_is_downloaded_once_more(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1_000_000
    with pytest.raises(DownloadError, match="time limit"):
        _download.download(server.address(), checksum_of(server.files[NAME]), tmp_path, time.monotonic() - 1)
    server.cut_after = None
    with (tmp_path / "data").open("r+b") as file:
        file.write(b"damaged")
    assert get(server, tmp_path).read_bytes() == server.files[NAME]


def test_complete_part_needs_only_the_answer_that_nothing_is_left(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == server.files[NAME]
    assert server.asked() == [None, "bytes=3000000-"]


def test_wrong_checksum_says_both_and_keeps_nothing(server: Server, tmp_path: Path) -> None:
    wrong = checksum_of(b"something else")
    with pytest.raises(DownloadError) as error:
        get(server, tmp_path, wrong)
    assert f"expected {wrong}" in str(error.value)
    assert f"found {checksum_of(server.files[NAME])}" in str(error.value)
    assert not (tmp_path / "data").exists()
    assert server.asked() == [None]


@pytest.mark.parametrize(("status", "message"), [(404, "404 Not Found"), (403, "403"), (503, "503")])
def test_refusals_are_named(server: Server, tmp_path: Path, status: int, message: str) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=message):
        _download.download(server.address(), checksum_of(b""), tmp_path, time.monotonic() + 30, idle=5)
    with pytest.raises(DownloadError, match=message):
        _download.probe(server.address())


def test_connection_that_never_brings_anything_is_given_up(server: Server, tmp_path: Path) -> None:
    server.cut_after = 0
    with pytest.raises(DownloadError, match="0 bytes are kept"):
        get(server, tmp_path)
    assert len(server.asked()) == _download.FRUITLESS_CONNECTIONS


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="refused"):
        _download.probe("http://127.0.0.1:1/disk.img")


# --- signatures -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Signer:
    home: Path
    keyring: Path
    armoured: Path

    def sign(self, text: bytes, *options: str) -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--quiet", *options, "--output", "-"]
        return subprocess.run(command, input=text, capture_output=True, check=True).stdout


def make_signer(folder: Path) -> Signer:
    home = folder / "gnupg"
    home.mkdir(mode=0o700, parents=True)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet"]
    name = "Test <test@example.com>"
    subprocess.run([*gpg, "--passphrase", "", "--quick-gen-key", name, "ed25519", "sign"], check=True)
    signer = Signer(home, folder / "keyring.gpg", folder / "keyring.asc")
    signer.keyring.write_bytes(subprocess.run([*gpg, "--export"], capture_output=True, check=True).stdout)
    signer.armoured.write_bytes(subprocess.run([*gpg, "--armor", "--export"], capture_output=True, check=True).stdout)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    return signer


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signer, Signer]:
    if shutil.which("gpg") is None or shutil.which("gpgv") is None:
        pytest.skip("gpg is not installed")
    # The socket of gpg-agent must have a short path.
    return make_signer(tmp_path_factory.mktemp("a")), make_signer(tmp_path_factory.mktemp("b"))


@pytest.mark.parametrize("form", ["clear", ".sign", ".gpg", ".asc"])
@pytest.mark.parametrize("armoured", [False, True])
def test_signed_checksum_file(server: Server, signers: tuple[Signer, Signer], form: str, armoured: bool) -> None:
    signer = signers[0]
    text = f"{checksum_of(server.files[NAME], 'sha512').digest}  {NAME}\n".encode()
    server.files["SHA512SUMS"] = signer.sign(text, "--clearsign") if form == "clear" else text
    if form != "clear":
        server.files[f"SHA512SUMS{form}"] = signer.sign(text, "--detach-sign", *(["--armor"] if form == ".asc" else []))
    keyring = signer.armoured if armoured else signer.keyring
    found = _download.signed_checksum(server.address("SHA512SUMS"), keyring, NAME)
    assert found == checksum_of(server.files[NAME], "sha512")


def test_signature_of_somebody_else_or_of_another_text(server: Server, signers: tuple[Signer, Signer]) -> None:
    mine, other = signers
    text = f"{'0' * 64}  {NAME}\n".encode()
    server.files["SHA256SUMS"] = text
    server.files["SHA256SUMS.gpg"] = other.sign(text, "--detach-sign")
    with pytest.raises(DownloadError, match="signature of .* is not good"):
        _download.signed_checksum(server.address("SHA256SUMS"), mine.keyring, NAME)
    server.files["SHA256SUMS.gpg"] = mine.sign(text + b"more", "--detach-sign")
    with pytest.raises(DownloadError, match="signature of .* is not good"):
        _download.signed_checksum(server.address("SHA256SUMS"), mine.keyring, NAME)


def test_line_outside_the_signed_part_does_not_count(server: Server, signers: tuple[Signer, Signer]) -> None:
    signer = signers[0]
    signed = signer.sign(f"{'1' * 64}  other.img\n".encode(), "--clearsign")
    server.files["SHA256SUMS"] = signed + f"{'2' * 64}  {NAME}\n".encode()
    with pytest.raises(DownloadError, match=r"no line|not good"):
        _download.signed_checksum(server.address("SHA256SUMS"), signer.keyring, NAME)


def test_checksum_file_without_a_signature(server: Server, signers: tuple[Signer, Signer]) -> None:
    server.files["SHA256SUMS"] = f"{'0' * 64}  {NAME}\n".encode()
    with pytest.raises(DownloadError, match="is not signed"):
        _download.signed_checksum(server.address("SHA256SUMS"), signers[0].keyring, NAME)


# --- the module -----------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(server: Server, tmp_path: Path) -> bytes:
    """A qcow2 with 64 MiB."""
    path = tmp_path / "source.qcow2"
    subprocess.run([str(QEMU_IMG), "create", "-q", "-f", "qcow2", str(path), "64M"], check=True)
    server.files[NAME] = path.read_bytes()
    return server.files[NAME]


def module_arguments(server: Server, tmp_path: Path, **more: Any) -> dict[str, Any]:
    checksum = str(checksum_of(server.files[NAME]))
    cache = str(tmp_path / "cache")
    return {"method": "download", "url": server.address(), "checksum": checksum, "cache_dir": cache, **more}


@needs_qemu_img
def test_module_downloads_once(run_module: Any, server: Server, disk: bytes, tmp_path: Path) -> None:
    arguments = module_arguments(server, tmp_path, size="2G")
    planned = run_module("base_disk", _check=True, **arguments)
    assert planned["changed"] and not planned["cached"] and planned["sha256"] is None
    assert not (tmp_path / "cache").exists()
    made = run_module("base_disk", **arguments)
    assert made["changed"] and not made["cached"], made
    assert made["path"] == planned["path"]
    image = Path(made["path"])
    assert hashlib.sha256(image.read_bytes()).hexdigest() == made["sha256"]
    info = subprocess.run([str(QEMU_IMG), "info", str(image)], capture_output=True, text=True, check=True).stdout
    assert "2 GiB" in info
    count = len(server.requests)
    again = run_module("base_disk", **arguments)
    assert again["cached"] and not again["changed"]
    assert again["sha256"] == made["sha256"]
    assert set(again) == set(made)
    assert len(server.requests) == count
    assert run_module("base_disk", _check=True, **arguments)["changed"] is False


@needs_qemu_img
def test_module_says_what_is_wrong_with_the_file(run_module: Any, server: Server, tmp_path: Path) -> None:
    backing = tmp_path / "evil.qcow2"
    command = [str(QEMU_IMG), "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", str(backing), "1M"]
    subprocess.run(command, check=True)
    for content, message in (
        (backing.read_bytes(), "refers to another file"),
        (b"<html>not found</html>" * 100, "not a disk image"),
        (b"\xfd7zXZ\0" + b"x" * 1000, "compressed with xz"),
    ):
        server.files[NAME] = content
        result = run_module("base_disk", **module_arguments(server, tmp_path))
        assert result["failed"]
        assert message in result["msg"]
    assert not list((tmp_path / "cache/base_disks/entries").iterdir())
    assert not list((tmp_path / "cache/base_disks/work").iterdir())


@needs_qemu_img
@pytest.mark.parametrize(
    ("changes", "message", "in_check_mode"),
    [
        ({"checksum": "sha256:" + "0" * 64}, "expected sha256:000", False),
        ({"checksum": "md5:1"}, "not a checksum", True),
        ({"checksum": None}, "needs something to check the file with", True),
        ({"url": "http://127.0.0.1:1/disk.img"}, "refused", True),
        ({"size": "big"}, "not a size", True),
        ({"cache_dir": "/etc/hostname/cache"}, "cannot be made", True),
    ],
)
def test_module_bad_input(
    run_module: Any,
    server: Server,
    disk: bytes,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
    in_check_mode: bool,
) -> None:
    arguments = {key: value for key, value in {**module_arguments(server, tmp_path), **changes}.items() if value}
    for check in (False, True) if in_check_mode else (False,):
        result = run_module("base_disk", _check=check, **arguments)
        assert result["failed"]
        assert message in result["msg"]
