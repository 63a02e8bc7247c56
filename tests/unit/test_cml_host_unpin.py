# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script that takes MAC addresses of another machine out of NetworkManager's profiles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles/cml_host/files/unpin.py"
OWN, FOREIGN = "0A:00:00:00:00:01", "0A:FF:00:00:00:01"
PROFILE = """\
[connection]
id=bridge0
type=bridge
interface-name=bridge0

[bridge]
mac-address={address}
stp=false

[ipv4]
dhcp-client-id=01:{address}
method=auto
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sys/class/net/ens5").mkdir(parents=True)
    (tmp_path / "sys/class/net/ens5/address").write_text(OWN.lower() + "\n")
    (tmp_path / "etc/NetworkManager/system-connections").mkdir(parents=True)
    return tmp_path


def write(root: Path, text: str, name: str = "bridge0.nmconnection") -> Path:
    path = root / "etc/NetworkManager/system-connections" / name
    path.write_text(text)
    path.chmod(0o600)
    return path


def run(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, root], capture_output=True, text=True, check=False)


def test_foreign_pins_go_and_the_rest_stays(root: Path) -> None:
    path = write(root, PROFILE.format(address=FOREIGN))
    done = run(root)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"removed bridge.mac-address ({FOREIGN.lower()})" in done.stdout
    lines = path.read_text().split()
    assert lines == [line for line in PROFILE.split() if "{address}" not in line]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_own_pins_stay_to_the_byte(root: Path) -> None:
    path = write(root, PROFILE.format(address=OWN))
    before = path.stat().st_ino
    assert run(root).stdout == ""
    assert (path.read_text(), path.stat().st_ino) == (PROFILE.format(address=OWN), before)


@pytest.mark.parametrize("text", ["[ipv4]\ndhcp-client-id=mac\n", "[ethernet]\ncloned-mac-address=preserve\n", ""])
def test_what_is_no_address_stays(root: Path, text: str) -> None:
    path = write(root, text)
    assert run(root).returncode == 0
    assert path.read_text() == text


def test_unreadable_profile_does_not_keep_the_others_from_being_repaired(root: Path) -> None:
    write(root, "no section\n", "a.nmconnection")
    path = write(root, f"[802-3-ethernet]\ncloned-mac-address={FOREIGN}\nmtu=1500\n")
    done = run(root)
    assert done.returncode == 1
    assert "a.nmconnection: cannot be read" in done.stderr
    assert path.read_text().split() == ["[802-3-ethernet]", "mtu=1500"]


def test_no_profiles(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
