# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cloud-init will do at the next first boot what was asked for, and the group sudonp works."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from gather import gather

if TYPE_CHECKING:
    from testinfra.host import Host

# cloud-init's own reading of all its files, as its own Python sees it.
EFFECTIVE = """
import json
from cloudinit import util
print(json.dumps(util.read_conf_with_confd("/etc/cloud/cloud.cfg")))
"""
GATHER = r"""
section effective; python3 -c "$1"
section sources; grep -h '^datasource_list' /etc/cloud/cloud.cfg.d/*.cfg | tail -n 1
section programs; for name in cloud-init growpart resize2fs; do command -v "$name" >/dev/null && echo "$name"; done
section sudonp; getent group sudonp
section sudoers; visudo --check
group=$(getent group sudonp | cut -d: -f3)
section member; setpriv --reuid=nobody --regid=nogroup --groups="${group:-65534}" sudo -n id -u 2>&1
section stranger; setpriv --reuid=nobody --regid=nogroup --clear-groups sudo -n id -u 2>&1
"""


@pytest.fixture(scope="module")
def cloud(host: Host) -> dict[str, str]:
    """What the machine says of cloud-init."""
    return gather(host, GATHER, EFFECTIVE)


def test_the_role_s_settings_are_in_effect(cloud: dict[str, str]) -> None:
    found = json.loads(cloud["effective"])
    assert found["ssh_deletekeys"] is True
    assert found["ssh_genkeytypes"] == ["ed25519", "ecdsa"]
    assert found["growpart"]["mode"] == "auto"
    assert found["resize_rootfs"] is True
    assert "network" not in found
    user = found["system_info"]["default_user"]
    assert user["groups"] == ["adm", "sudo", "sudonp"]
    # Of the distribution's own file, which is added to and not replaced.
    assert user["name"] in ("debian", "ubuntu")
    assert user["lock_passwd"] is True


def test_the_data_sources_are_on_one_line(cloud: dict[str, str]) -> None:
    names = re.fullmatch(r"datasource_list: \[([\w, ]+)\]", cloud["sources"])
    assert names, cloud["sources"]
    assert names[1].split(", ") == [str(name) for name in json.loads(cloud["effective"])["datasource_list"]]


def test_root_can_grow(cloud: dict[str, str]) -> None:
    assert cloud["programs"].split() == ["cloud-init", "growpart", "resize2fs"]


def test_members_of_sudonp_need_no_password(cloud: dict[str, str]) -> None:
    assert cloud["sudonp"].startswith("sudonp:")
    assert cloud["member"] == "0"
    assert cloud["stranger"] != "0"
    assert "error" not in cloud["sudoers"]
