# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import functools
import http.server
import subprocess
import threading

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._apt_repository import (
    RepositoryError,
    fetch,
    release_url,
    verified_release,
)


@pytest.mark.parametrize(
    ("uri", "suite", "url"),
    [
        ("https://example.com/debian/", "trixie", "https://example.com/debian/dists/trixie/InRelease"),
        ("https://example.com/v1.36/deb/", "/", "https://example.com/v1.36/deb/InRelease"),
        ("https://example.com/r", "stable/", "https://example.com/r/stable/InRelease"),
    ],
)
def test_flat_repositories_end_in_a_slash(uri: str, suite: str, url: str):
    assert release_url(uri, suite) == url


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory):
    """Serve a signed InRelease; gives (URL, armoured key, fingerprint, folder)."""
    folder, home = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)

    def gpg(*arguments: str) -> str:
        command = ["gpg", "--homedir", str(home), "--batch", "--passphrase", "", "--pinentry-mode", "loopback"]
        return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout

    gpg("--quick-gen-key", "archive@example.com", "ed25519", "sign", "never")
    (home / "Release").write_text("Origin: test\n")
    gpg("--clearsign", "--output", str(folder / "InRelease"), str(home / "Release"))
    key = gpg("--armor", "--export").encode()
    listing = gpg("--with-colons", "--list-keys").splitlines()
    fingerprint = [line.split(":")[9] for line in listing if line.startswith("fpr:")][0]
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", key, fingerprint, folder
    server.shutdown()
    server.server_close()
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


def test_a_signed_release_is_accepted(repository):
    url, key, fingerprint, _folder = repository
    release = verified_release(url, "/", key=key, fingerprint=fingerprint)
    assert release.url == f"{url}InRelease"
    assert len(release.sha256) == 64
    assert release.key == key.decode()


def test_another_key_than_the_pinned_one_is_refused(repository):
    url, key, fingerprint, _folder = repository
    with pytest.raises(RepositoryError, match=f"has the fingerprint {fingerprint}, not {'A' * 40}"):
        verified_release(url, "/", key=key, fingerprint="A" * 40)


def test_an_altered_release_is_refused(repository):
    url, key, fingerprint, folder = repository
    original = (folder / "InRelease").read_text()
    (folder / "InRelease").write_text(original.replace("Origin: test", "Origin: evil"))
    try:
        with pytest.raises(RepositoryError, match="not signed by the expected key"):
            verified_release(url, "/", key=key, fingerprint=fingerprint)
    finally:
        (folder / "InRelease").write_text(original)


def test_something_that_is_no_key_is_refused(repository):
    url, _key, _fingerprint, _folder = repository
    armour = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nbm90IGEga2V5\n-----END PGP PUBLIC KEY BLOCK-----\n"
    with pytest.raises(RepositoryError):
        verified_release(url, "/", key=armour, fingerprint="A" * 40)


def test_a_server_that_does_not_answer_is_named():
    with pytest.raises(RepositoryError, match="http://127.0.0.1:9/x does not answer"):
        fetch("http://127.0.0.1:9/x", timeout=2)
