# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A check that fails makes the unit fail, visibly; a run without one clears it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testinfra.host import Host

SCRIPT = r"""
set -e
unit=goldsmith-boot-checks.service
run() {
    systemctl daemon-reload
    systemctl restart $unit
    until systemctl show --property=SubState $unit | grep -Eq 'exited|failed'; do sleep 0.5; done
    echo "$1 $(systemctl is-active $unit) $(systemctl is-system-running)"
}
folder=/run/systemd/system/$unit.d
mkdir -p $folder
echo '{"log": "/run/checks.log", "network": {"tcp": ["127.0.0.1:1"], "interfaces": []}}' >/run/checks.json
command="/usr/lib/goldsmith-images/boot-checks --config /run/checks.json"
printf '[Service]\nExecStart=\nExecStart=%s\n' "$command" >$folder/test.conf
run broken
grep -c 'FAIL tcp 127.0.0.1:1' /run/checks.log
rm -r $folder
run whole
"""


def test_failure_is_visible_to_monitoring(host: Host) -> None:
    done = host.run("bash -c %s", SCRIPT)
    assert done.stdout.split() == ["broken", "failed", "degraded", "1", "whole", "active", "running"], done.stderr
