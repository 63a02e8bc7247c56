# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sources of swap, in root trees made for the test."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _swap_off as logic

FSTAB = """\
# /etc/fstab
LABEL=root / ext4 errors=remount-ro 0 1
UUID=5a12 none swap sw 0 0
/swapfile\tnone\tswap\tsw,pri=1\t0\t0
# UUID=old none swap sw 0 0
/srv/swap /mnt none bind
"""


def system(root: pathlib.Path) -> pathlib.Path:
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "etc/fstab").write_text(FSTAB)
    return root


def test_fstab_keeps_everything_else() -> None:
    assert logic.clean_fstab(FSTAB) == FSTAB.replace("UUID=5a12", f"{logic.COMMENT}UUID=5a12").replace(
        "/swapfile\t", f"{logic.COMMENT}/swapfile\t"
    )
    assert logic.clean_fstab(logic.clean_fstab(FSTAB)) == logic.clean_fstab(FSTAB)
    assert logic.clean_fstab("") == ""


def test_proc_swaps() -> None:
    text = "Filename\t\t\t\tType\t\tSize\n/dev/zram0 partition 1\n/my\\040file file 2\n"
    assert logic.swaps_in_use(text) == ("/dev/zram0", "/my file")
    assert logic.swaps_in_use("Filename\tType\n") == ()


def test_every_source_once_and_then_nothing(tmp_path: pathlib.Path) -> None:
    root = system(tmp_path)
    (root / "usr/lib/systemd/system/vendor.swap").write_text("[Swap]\nWhat=/vendor\n")
    (root / "usr/lib/systemd/system/zramswap.service").write_text("")
    own = root / "etc/systemd/system/own.swap"
    own.write_text("[Swap]\nWhat=/own\n")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "own.swap").symlink_to("../own.swap")
    plan = logic.decide(offline=True, root=str(root))
    assert "/etc/systemd/system/swap.target" in plan.masks
    assert "/etc/systemd/system/zramswap.service" in plan.masks
    assert "/etc/systemd/system/vendor.swap" in plan.masks
    assert "/etc/systemd/system-generators/zram-generator" in plan.masks
    assert plan.unlinks == ("/etc/systemd/system/multi-user.target.wants/own.swap",)
    assert plan.swapoff == ()
    assert "/etc/fstab" in str(logic.diff_of(plan))
    logic.apply_links(plan, str(root))
    (root / "etc/fstab").write_text(plan.fstab_after)
    assert os.readlink(root / "etc/systemd/system/swap.target") == "/dev/null"
    assert own.is_file()
    assert not os.path.lexists(wants / "own.swap")
    assert not logic.decide(offline=True, root=str(root)).changed


def test_a_system_without_fstab(tmp_path: pathlib.Path) -> None:
    plan = logic.decide(offline=True, root=str(tmp_path))
    assert plan.fstab_after == ""
    logic.apply_links(plan, str(tmp_path))
    assert not logic.decide(offline=True, root=str(tmp_path)).changed


def test_an_own_swap_target_is_not_thrown_away(tmp_path: pathlib.Path) -> None:
    root = system(tmp_path)
    (root / "etc/systemd/system/swap.target").write_text("[Unit]\n")
    with pytest.raises(logic.SwapOffError, match="swap.target"):
        logic.decide(offline=True, root=str(root))
