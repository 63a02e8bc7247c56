# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fingerprints against those that gpg tells of keys that it makes here."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _openpgp as logic

if shutil.which("gpg") is None:
    pytest.skip("needs gpg", allow_module_level=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Fingerprint to armored key: an RSA one with a subkey of its own and an elliptic one."""
    home = tmp_path_factory.mktemp("gnupg")
    home.chmod(0o700)
    environment = {**os.environ, "GNUPGHOME": str(home)}

    def gpg(*arguments: str) -> str:
        command = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    try:
        for name, kind in (("one", "rsa2048"), ("two", "ed25519")):
            gpg("--quick-generate-key", f"{name}@example.org", kind, "sign")
        lines = [line.split(":") for line in gpg("--with-colons", "--list-keys").splitlines()]
        primaries = [lines[i + 1][9] for i, line in enumerate(lines) if line[0] == "pub"]
        gpg("--quick-add-key", primaries[0], "rsa2048", "encr")
        return {each: gpg("--armor", "--export", each) for each in primaries}
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False)


def test_as_gpg_says(keys: dict[str, str]) -> None:
    assert len(keys) == 2
    for expected, text in keys.items():
        assert logic.primary_fingerprints(text) == [expected]


def test_a_second_key_in_the_same_file_does_not_hide(keys: dict[str, str]) -> None:
    together = "a comment\n" + "\n".join(keys.values()).replace("\n", "\r\n")
    assert logic.primary_fingerprints(together) == list(keys)


def test_armor_headers(keys: dict[str, str]) -> None:
    expected, text = next(iter(keys.items()))
    with_header = text.replace("BLOCK-----\n", "BLOCK-----\nVersion: GnuPG v2.0.15 (GNU/Linux)\n", 1)
    assert logic.primary_fingerprints(with_header) == [expected]


@pytest.mark.parametrize("text", ["", "<html>Not found</html>", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n"])
def test_not_a_key(text: str) -> None:
    with pytest.raises(logic.OpenPGPError, match="no armored"):
        logic.primary_fingerprints(text)


def test_a_damaged_key(keys: dict[str, str]) -> None:
    text = next(iter(keys.values()))
    lines = text.splitlines()
    with pytest.raises(logic.OpenPGPError, match="cut off|damaged"):
        logic.primary_fingerprints("\n".join([*lines[:6], *lines[-1:]]))
    with pytest.raises(logic.OpenPGPError, match="damaged"):
        logic.primary_fingerprints(text.replace(lines[3], "!" * len(lines[3])))


def test_the_key_file_of_a_real_distribution() -> None:
    path = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not path.is_file():
        pytest.skip("needs debian-archive-keyring")
    tags = [tag for tag, _body in logic.packets_of(path.read_bytes())]
    assert tags.count(logic.TAG_PUBLIC_KEY) >= 3
