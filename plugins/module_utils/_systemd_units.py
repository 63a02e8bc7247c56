# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Bring many systemd units into their wanted state with few systemctl processes."""

from __future__ import annotations

import dataclasses
import os
import typing as t

# Where systemd looks for system units, first one wins.
UNIT_FOLDERS = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)
SUFFIXES = (
    ".service",
    ".socket",
    ".target",
    ".timer",
    ".mount",
    ".automount",
    ".swap",
    ".path",
    ".slice",
    ".scope",
    ".device",
)
# States of a unit file in which `systemctl enable` has something to do, and those in which `disable` has.
ENABLE_CHANGES = frozenset({"disabled", "enabled-runtime", "linked", "linked-runtime"})
DISABLE_CHANGES = frozenset({"enabled", "enabled-runtime", "linked", "linked-runtime"})
RUNNING = frozenset({"active", "activating", "reloading", "refreshing"})
STOPPED = frozenset({"inactive", "failed", "deactivating", "unknown", ""})
MISSING = "not-found"

SHOW_PROPERTIES = "Id,LoadState,ActiveState,UnitFileState,ActiveEnterTimestampMonotonic"


class SystemdUnitsError(Exception):
    """A wish that cannot be fulfilled, or a failed systemctl."""


@dataclasses.dataclass(frozen=True)
class Wishes:
    """The lists of the task; the names carry their suffix."""

    enabled: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    unmasked: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    reloaded: tuple[str, ...] = ()
    restarted_for: tuple[tuple[str, tuple[str, ...]], ...] = ()
    daemon_reload: bool = False
    default_target: str = ""
    offline: bool = False
    missing_ok: bool = False

    def all_units(self) -> list[str]:
        lists = (self.enabled, self.disabled, self.masked, self.unmasked)
        run_lists = (self.started, self.stopped, self.restarted, self.reloaded, dict(self.restarted_for))
        return sorted({name for names in lists + run_lists for name in names})


@dataclasses.dataclass(frozen=True)
class UnitState:
    """What one unit is now. `file_state` is the word of `systemctl is-enabled`."""

    file_state: str = MISSING
    active_state: str = "inactive"
    # Seconds of the monotonic clock; 0 if it has not been started since the boot.
    active_since: float = 0.0

    @property
    def missing(self) -> bool:
        return self.file_state == MISSING


@dataclasses.dataclass(frozen=True)
class Plan:
    """The systemctl calls, and what they are for."""

    commands: tuple[tuple[str, ...], ...] = ()
    changed_units: tuple[str, ...] = ()
    skipped_units: tuple[str, ...] = ()
    missing_units: tuple[str, ...] = ()
    changed: bool = False


def full_name(name: str) -> str:
    """As systemctl does it: a name without a suffix is a service."""
    return name if name.endswith(SUFFIXES) else f"{name}.service"


def make_wishes(params: t.Mapping[str, t.Any]) -> Wishes:
    """Normalise the names and refuse contradictions."""

    def names(key: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(full_name(name) for name in params.get(key) or ()))

    wishes = Wishes(
        enabled=names("enabled"),
        disabled=names("disabled"),
        masked=names("masked"),
        unmasked=names("unmasked"),
        started=names("started"),
        stopped=names("stopped"),
        restarted=names("restarted"),
        reloaded=names("reloaded"),
        restarted_for=tuple(
            (full_name(name), tuple(paths)) for name, paths in (params.get("restarted_for") or {}).items()
        ),
        daemon_reload=bool(params.get("daemon_reload")),
        default_target=params.get("default_target") or "",
        offline=bool(params.get("offline")),
        missing_ok=bool(params.get("missing_ok")),
    )
    pairs = (
        ("enabled", "disabled"),
        ("enabled", "masked"),
        ("masked", "unmasked"),
        ("started", "stopped"),
        ("started", "masked"),
        ("restarted", "stopped"),
        ("reloaded", "stopped"),
    )
    for one, other in pairs:
        both = sorted(set(getattr(wishes, one)) & set(getattr(wishes, other)))
        if both:
            raise SystemdUnitsError(f"{', '.join(both)}: named in both '{one}' and '{other}'")
    return wishes


def unit_file_exists(name: str, root: str = "/") -> bool:
    """Whether there is a unit file, a template for it or a SysV script of this name."""
    stem, _dot, suffix = name.rpartition(".")
    candidates = [name]
    if "@" in stem:
        candidates.append(f"{stem.partition('@')[0]}@.{suffix}")
    for folder in UNIT_FOLDERS:
        if any(os.path.lexists(os.path.join(root, folder[1:], candidate)) for candidate in candidates):
            return True
    return suffix == "service" and os.path.exists(os.path.join(root, "etc/init.d", stem))


def parse_is_enabled(names: t.Sequence[str], output: str) -> dict[str, UnitState]:
    """`systemctl is-enabled A B C` prints one word a line, in this order."""
    words = output.split()
    if len(words) != len(names):
        raise SystemdUnitsError(f"systemctl is-enabled gave {len(words)} answers for {len(names)} units: {output!r}")
    return {name: UnitState(word) for name, word in zip(names, words)}


def parse_show(names: t.Sequence[str], output: str) -> dict[str, UnitState]:
    """`systemctl show A B C` prints a block for each unit, in this order, with a blank line between them."""
    blocks = [block for block in output.strip().split("\n\n") if block]
    if len(blocks) != len(names):
        raise SystemdUnitsError(f"systemctl show gave {len(blocks)} answers for {len(names)} units: {output!r}")
    result = {}
    for name, block in zip(names, blocks):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        load_state = values.get("LoadState", "")
        file_state = values.get("UnitFileState", "")
        if load_state == "masked":
            # The state of the file is empty for a unit that was masked while it had none.
            file_state = file_state if file_state.startswith("masked") else "masked"
        elif load_state == "not-found":
            file_state = MISSING
        elif not file_state:
            # A unit without a file of its own, made by the kernel's view of the machine (device, swap in use).
            file_state = "transient"
        since = int(values.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
        result[name] = UnitState(file_state, values.get("ActiveState", ""), since)
    return result


def outdated(wishes: Wishes, states: t.Mapping[str, UnitState], boot_time: float) -> list[str]:
    """The running units with a file that was changed after their start. `boot_time`: when the monotonic clock was 0."""
    result = []
    for name, paths in wishes.restarted_for:
        times = [os.stat(path).st_mtime for path in paths if os.path.exists(path)]
        running = states[name].active_state in RUNNING
        if running and times and max(times) > boot_time + states[name].active_since:
            result.append(name)
    return result


def current_default_target(root: str = "/") -> str:
    """What `systemctl get-default` says, without a process."""
    for folder in (
        "etc/systemd/system",
        "run/systemd/system",
        "usr/local/lib/systemd/system",
        "usr/lib/systemd/system",
    ):
        path = os.path.join(root, folder, "default.target")
        if os.path.islink(path):
            return os.path.basename(os.readlink(path))
    return ""


def decide(
    wishes: Wishes,
    states: t.Mapping[str, UnitState],
    default_target: str = "",
    check_mode: bool = False,
    outdated: t.Sequence[str] = (),
) -> Plan:
    """Compare; nothing is touched."""
    required = wishes.enabled + wishes.disabled + wishes.started + wishes.stopped + wishes.restarted + wishes.reloaded
    missing = tuple(sorted({name for name in required if states[name].missing}))
    if missing and not wishes.missing_ok and not check_mode:
        raise SystemdUnitsError(f"no such unit: {', '.join(missing)}")
    # In check mode a missing unit is taken to come with a package that is not installed yet: enabling it is a change.
    absent = frozenset(missing) if wishes.missing_ok else frozenset()

    blocked = sorted(
        name
        for name in wishes.enabled + wishes.started + wishes.restarted
        if states[name].file_state.startswith("masked") and name not in wishes.unmasked
    )
    if blocked:
        raise SystemdUnitsError(f"masked, name it in 'unmasked' too: {', '.join(blocked)}")
    bad = sorted(name for name in wishes.enabled if states[name].file_state == "bad")
    if bad:
        raise SystemdUnitsError(f"the unit file is not valid: {', '.join(bad)}")

    unmask = [name for name in wishes.unmasked if states[name].file_state.startswith("masked")]
    mask = [name for name in wishes.masked if states[name].file_state != "masked"]
    disable = [name for name in wishes.disabled if states[name].file_state in DISABLE_CHANGES]
    enable = [
        name
        for name in wishes.enabled
        if name not in absent and (states[name].file_state in ENABLE_CHANGES or states[name].missing or name in unmask)
    ]
    target = wishes.default_target if wishes.default_target not in ("", default_target) else ""

    start = [name for name in wishes.started if name not in absent and states[name].active_state not in RUNNING]
    stop = [name for name in wishes.stopped if states[name].active_state not in STOPPED]
    restart = [name for name in dict.fromkeys([*wishes.restarted, *outdated]) if name not in absent]
    reload = [name for name in wishes.reloaded if name not in absent]
    # A unit that is restarted is started by that; one that was just started needs no reload.
    start = [name for name in start if name not in restart]
    reload = [name for name in reload if name not in restart and name not in start]
    skipped: list[str] = []
    if wishes.offline:
        skipped = sorted(
            {*wishes.started, *wishes.stopped, *wishes.restarted, *wishes.reloaded, *dict(wishes.restarted_for)}
        )
        start, stop, restart, reload = [], [], [], []

    install: list[tuple[str, ...]] = [
        (verb, *names)
        for verb, names in (("unmask", unmask), ("disable", disable), ("mask", mask), ("enable", enable))
        if names
    ]
    if target:
        install.append(("set-default", target))
    commands: list[tuple[str, ...]] = []
    if wishes.offline:
        commands = install
    else:
        # Each of these lets the manager read all its units again, which takes a second in an emulated machine: once is
        # enough, after the last of them.
        commands = [(command[0], "--no-reload", *command[1:]) for command in install]
        if install or wishes.daemon_reload:
            commands.append(("daemon-reload",))
        # A unit that has failed would stay so if its condition is not met, or if it has failed too often lately.
        failed = [name for name in restart + start if states[name].active_state == "failed"]
        for verb, names in (
            ("stop", stop),
            ("reset-failed", failed),
            ("restart", restart),
            ("start", start),
            ("reload-or-restart", reload),
        ):
            if names:
                commands.append((verb, *names))
    changed_units = {*unmask, *mask, *disable, *enable, *start, *stop, *restart, *reload}
    return Plan(
        commands=tuple(commands),
        changed_units=tuple(sorted(changed_units)),
        skipped_units=tuple(skipped),
        missing_units=missing,
        changed=bool(changed_units or target),
    )


def expected(wishes: Wishes, plan: Plan, states: t.Mapping[str, UnitState]) -> dict[str, UnitState]:
    """The states after the plan, for the difference."""
    result = dict(states)
    for name in plan.changed_units:
        file_state = states[name].file_state
        active_state = states[name].active_state
        if name in wishes.masked:
            file_state = "masked"
        elif name in wishes.enabled and (file_state in ENABLE_CHANGES or file_state in (MISSING, "masked")):
            file_state = "enabled"
        elif name in wishes.disabled:
            file_state = "disabled"
        elif name in wishes.unmasked and file_state.startswith("masked"):
            file_state = "unmasked"
        if not wishes.offline:
            if name in wishes.stopped:
                active_state = "inactive"
            elif name in wishes.started + wishes.restarted + wishes.reloaded or name in dict(wishes.restarted_for):
                active_state = "active"
        result[name] = UnitState(file_state, active_state)
    return result


def text_of(states: t.Mapping[str, UnitState], default_target: str, offline: bool) -> str:
    lines = [
        f"{name}: {state.file_state}" + ("" if offline else f", {state.active_state}")
        for name, state in sorted(states.items())
    ]
    if default_target:
        lines.append(f"default target: {default_target}")
    return "".join(f"{line}\n" for line in lines)
