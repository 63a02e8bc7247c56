# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which systemctl calls follow from which states."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _systemd_units as logic

# `systemctl show --property=Id,LoadState,ActiveState,UnitFileState` of systemd 257, trimmed to four units.
SHOW = """Id=ssh.service
LoadState=loaded
ActiveState=active
UnitFileState=enabled
ActiveEnterTimestampMonotonic=21500000

Id=nope.service
LoadState=not-found
ActiveState=inactive
UnitFileState=

Id=swap.target
LoadState=masked
ActiveState=inactive
UnitFileState=masked

Id=dev-vda.device
LoadState=loaded
ActiveState=active
UnitFileState=
"""


def plan(states: dict[str, tuple[str, str]], check_mode: bool = False, target: str = "", **lists: t.Any) -> logic.Plan:
    wishes = logic.make_wishes(lists)
    found = {name: logic.UnitState() for name in wishes.all_units()}
    found.update({logic.full_name(name): logic.UnitState(*state) for name, state in states.items()})
    return logic.decide(wishes, found, target, check_mode)


def test_show_is_read_in_the_order_of_the_question() -> None:
    names = ["ssh.service", "nope.service", "swap.target", "dev-vda.device"]
    states = logic.parse_show(names, SHOW)
    assert states["ssh.service"] == logic.UnitState("enabled", "active", 21.5)
    assert states["nope.service"].missing
    assert states["swap.target"].file_state == "masked"
    assert states["dev-vda.device"].file_state == "transient"


def test_show_of_nothing_is_an_error() -> None:
    with pytest.raises(logic.SystemdUnitsError, match="0 answers"):
        logic.parse_show(["ssh.service"], "")


def test_is_enabled_is_read_in_the_order_of_the_question() -> None:
    states = logic.parse_is_enabled(["a.service", "b.timer"], "disabled\nstatic\n")
    assert [states[name].file_state for name in ("a.service", "b.timer")] == ["disabled", "static"]
    with pytest.raises(logic.SystemdUnitsError):
        logic.parse_is_enabled(["a.service", "b.timer"], "disabled\n")


def test_everything_is_right_and_no_command_is_run() -> None:
    result = plan(
        {"a": ("enabled", "active"), "b": ("disabled", "inactive"), "c": ("masked", "inactive"), "d": ("static", "")},
        enabled=["a", "d"],
        disabled=["b"],
        masked=["c"],
        started=["a"],
        stopped=["b", "c"],
        default_target="multi-user.target",
        target="multi-user.target",
    )
    assert (result.changed, result.commands) == (False, ())


def test_one_command_a_kind_and_one_reload() -> None:
    result = plan(
        {
            "a": ("disabled", "inactive"),
            "b.timer": ("disabled", "inactive"),
            "c": ("enabled", "active"),
            "d": ("masked", "inactive"),
        },
        enabled=["a", "b.timer"],
        started=["a"],
        disabled=["c"],
        stopped=["c"],
        unmasked=["d"],
        masked=["swap.target"],
        daemon_reload=True,
        default_target="multi-user.target",
        target="graphical.target",
    )
    assert result.commands == (
        ("unmask", "--no-reload", "d.service"),
        ("disable", "--no-reload", "c.service"),
        ("mask", "--no-reload", "swap.target"),
        ("enable", "--no-reload", "a.service", "b.timer"),
        ("set-default", "--no-reload", "multi-user.target"),
        ("daemon-reload",),
        ("stop", "c.service"),
        ("start", "a.service"),
    )
    assert result.changed_units == ("a.service", "b.timer", "c.service", "d.service", "swap.target")


def test_offline_writes_and_does_not_start() -> None:
    result = plan(
        {"a": ("disabled", "")},
        enabled=["a"],
        started=["a"],
        restarted=["b"],
        offline=True,
        daemon_reload=True,
        missing_ok=True,
    )
    assert result.commands == (("enable", "a.service"),)
    assert result.skipped_units == ("a.service", "b.service")


def test_restart_takes_the_place_of_start_and_reload() -> None:
    result = plan({"a": ("enabled", "inactive")}, started=["a"], restarted=["a"], reloaded=["a"])
    assert result.commands == (("restart", "a.service"),)
    assert result.changed


def test_a_unit_that_has_failed_starts_anew() -> None:
    states = {"a": ("enabled", "failed"), "b": ("enabled", "active"), "c": ("enabled", "failed")}
    result = plan(states, restarted=["a", "b"], started=["c"])
    assert result.commands == (
        ("reset-failed", "a.service", "c.service"),
        ("restart", "a.service", "b.service"),
        ("start", "c.service"),
    )


def test_a_unit_is_restarted_for_a_file_that_is_newer_than_its_start(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    changed = path.stat().st_mtime
    wishes = logic.make_wishes({"restarted_for": {"a": [str(path), str(tmp_path / "none")], "b": [str(path)]}})
    boot = changed - 100
    states = {
        "a.service": logic.UnitState("enabled", "active", 50.0),
        "b.service": logic.UnitState("enabled", "inactive", 50.0),
    }
    # b does not run, so it will read the file when it does.
    assert logic.outdated(wishes, states, boot) == ["a.service"]
    assert logic.decide(wishes, states, outdated=["a.service"]).commands == (("restart", "a.service"),)
    assert logic.outdated(wishes, {**states, "a.service": logic.UnitState("enabled", "active", 101.0)}, boot) == []


def test_daemon_reload_alone_is_no_change() -> None:
    result = plan({}, daemon_reload=True)
    assert result.commands == (("daemon-reload",),)
    assert not result.changed


@pytest.mark.parametrize("key", ["enabled", "disabled", "started", "stopped", "restarted", "reloaded"])
def test_a_missing_unit(key: str) -> None:
    with pytest.raises(logic.SystemdUnitsError, match="no such unit: nope.service"):
        plan({}, **{key: ["nope"]})
    assert plan({}, missing_ok=True, **{key: ["nope"]}) == logic.Plan(missing_units=("nope.service",))
    assert plan({}, check_mode=True, **{key: ["nope"]}).missing_units == ("nope.service",)


def test_check_mode_takes_a_missing_unit_for_one_to_come() -> None:
    assert plan({}, check_mode=True, enabled=["nope"], started=["nope"]).changed_units == ("nope.service",)


def test_a_missing_unit_can_be_masked() -> None:
    assert plan({}, masked=["nope.swap"], unmasked=["else"]).commands == (
        ("mask", "--no-reload", "nope.swap"),
        ("daemon-reload",),
    )


def test_a_masked_unit_is_not_enabled_behind_the_callers_back() -> None:
    with pytest.raises(logic.SystemdUnitsError, match="'unmasked'"):
        plan({"a": ("masked", "inactive")}, enabled=["a"])
    commands = plan({"a": ("masked", "inactive")}, enabled=["a"], unmasked=["a"]).commands
    assert [command[0] for command in commands] == ["unmask", "enable", "daemon-reload"]


def test_contradictions() -> None:
    with pytest.raises(logic.SystemdUnitsError, match="a.service: named in both"):
        logic.make_wishes({"enabled": ["a"], "masked": ["a.service"]})


def test_unit_files_are_found_as_file_template_and_sysv_script(tmp_path: pathlib.Path) -> None:
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    (units / "a.timer").write_text("")
    (units / "getty@.service").write_text("")
    (tmp_path / "etc/init.d").mkdir(parents=True)
    (tmp_path / "etc/init.d/old").write_text("")
    root = str(tmp_path)
    assert logic.unit_file_exists("a.timer", root)
    assert logic.unit_file_exists("getty@tty1.service", root)
    assert logic.unit_file_exists("old.service", root)
    assert not logic.unit_file_exists("a.service", root)
    assert not logic.unit_file_exists("old.timer", root)


def test_default_target_is_read_from_the_first_link(tmp_path: pathlib.Path) -> None:
    for folder, target in (("usr/lib", "graphical.target"), ("etc", "/usr/lib/systemd/system/multi-user.target")):
        path = tmp_path / folder / "systemd/system/default.target"
        path.parent.mkdir(parents=True)
        path.symlink_to(target)
    assert logic.current_default_target(str(tmp_path)) == "multi-user.target"


def test_the_difference_shows_what_changes() -> None:
    wishes = logic.make_wishes({"enabled": ["a"], "started": ["a"], "masked": ["b.swap"]})
    states = {"a.service": logic.UnitState("disabled", "inactive"), "b.swap": logic.UnitState()}
    result = logic.decide(wishes, states)
    assert logic.text_of(logic.expected(wishes, result, states), "", False) == (
        "a.service: enabled, active\nb.swap: masked, inactive\n"
    )
