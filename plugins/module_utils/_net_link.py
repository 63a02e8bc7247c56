# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Interfaces, addresses and the default route of this machine, as the kernel has them."""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import shutil
import subprocess
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline, Finding, Problem

VERSIONS = {"ipv4": ("inet", "-4"), "ipv6": ("inet6", "-6")}


def ip(deadline: Deadline, *arguments: str) -> list[dict[str, t.Any]]:
    """What iproute2's ip answers."""
    program = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise Problem("tool_missing", "there is no program ip", status="skip", method="ip")
    done = subprocess.run(
        [program, "-json", *arguments], capture_output=True, timeout=max(deadline.left(), 0.1), check=False
    )
    if done.returncode != 0:
        raise Problem("internal", done.stderr.decode(errors="replace").strip(), method="ip")
    return [entry for entry in json.loads(done.stdout or b"[]") if entry]


def families(wanted: str | None) -> list[str]:
    """The families that must be there: with None one of them is enough, which callers handle."""
    return ["ipv4", "ipv6"] if wanted in (None, "dual") else [wanted]


def usable_addresses(link: t.Mapping[str, t.Any], family: str) -> list[str]:
    """Addresses that other machines can answer to."""
    result = []
    for entry in link.get("addr_info", []):
        if entry.get("family") != VERSIONS[family][0] or "local" not in entry:
            continue
        unusable = entry.get("tentative") or entry.get("dadfailed") or entry.get("scope") == "link"
        if not unusable and not ipaddress.ip_address(entry["local"]).is_link_local:
            result.append(entry["local"])
    return result


def judge_interface(link: t.Mapping[str, t.Any], family: str | None, mtu: int | None) -> str:
    """The addresses of a usable interface; Problem says why it is none."""
    name, flags = link["ifname"], link.get("flags", [])
    if "UP" not in flags:
        raise Problem("interface_down", f"{name} is not up", method="ip")
    # Not operstate: it stays "unknown" for tunnels, loopback and some virtual devices that work.
    if "LOWER_UP" not in flags:
        raise Problem("no_carrier", f"{name} is up, but has no carrier", method="ip")
    found = {each: usable_addresses(link, each) for each in families(family)}
    missing = [each for each, addresses in found.items() if not addresses]
    if missing and (family is not None or len(missing) == 2):
        conflicts = [entry["local"] for entry in link.get("addr_info", []) if entry.get("dadfailed")]
        if conflicts:
            raise Problem("address_conflict", f"{name}: {', '.join(conflicts)} is in use elsewhere", method="ip")
        have = [entry.get("local") for entry in link.get("addr_info", [])]
        raise Problem(
            "no_address",
            f"{name} has no usable {' or '.join(missing)} address (it has {', '.join(map(str, have)) or 'none'})",
            method="ip",
        )
    if mtu is not None and link.get("mtu") != mtu:
        raise Problem("wrong_mtu", f"{name} has MTU {link.get('mtu')}, expected {mtu}", method="ip")
    return f"{name}: {', '.join(sum(found.values(), []))}, MTU {link.get('mtu')}"


def check_interface(pattern: str, family: str | None, mtu: int | None, deadline: Deadline) -> Finding:
    """One interface whose name fits is usable; a pattern does not mean the loopback interface."""
    links = [link for link in ip(deadline, "address", "show") if fnmatch.fnmatchcase(link["ifname"], pattern)]
    if pattern != "lo":
        links = [link for link in links if "LOOPBACK" not in link.get("flags", [])]
    if not links:
        raise Problem("no_interface", f"there is no interface {pattern}", method="ip")
    problems: list[Problem] = []
    for link in links:
        try:
            return Finding(judge_interface(link, family, mtu), "ip")
        except Problem as exc:
            problems.append(exc)
    # The one that came farthest tells most.
    order = ("wrong_mtu", "address_conflict", "no_address", "no_carrier", "interface_down")
    raise min(problems, key=lambda problem: order.index(problem.error_class))


def judge_default_route(routes: t.Sequence[t.Mapping[str, t.Any]], family: str) -> str:
    """The default route that is used, of all of one family."""
    # The kernel keeps an unreachable one on lo for IPv6.
    usable = [route for route in routes if route.get("type", "unicast") == "unicast"]
    if not usable:
        raise Problem("no_default_route", f"{family}: none", method="ip")
    alive = [route for route in usable if not {"dead", "linkdown"} & set(route.get("flags", []))]
    if not alive:
        raise Problem("route_down", f"{family}: {describe_route(usable[0])}", method="ip")
    best = min(route.get("metric", 0) for route in alive)
    chosen = [route for route in alive if route.get("metric", 0) == best]
    text = f"{family}: " + ", ".join(describe_route(route) for route in chosen)
    if len(chosen) > 1:
        raise Problem("ambiguous_route", text, status="warn", method="ip")
    return text


def describe_route(route: t.Mapping[str, t.Any]) -> str:
    hops = route.get("nexthops") or [route]
    return (
        ", ".join(
            f"{hop.get('gateway') or hop.get('via', {}).get('host') or 'on the link'} dev {hop.get('dev')}"
            for hop in hops
        )
        + f" metric {route.get('metric', 0)}"
    )


def check_default_route(family: str | None, deadline: Deadline) -> Finding:
    found, problems = [], []
    for each in families(family):
        try:
            found.append(judge_default_route(ip(deadline, VERSIONS[each][1], "route", "show", "default"), each))
        except Problem as exc:
            problems.append(exc)
    serious = [exc for exc in problems if family is not None or exc.error_class != "no_default_route" or not found]
    if serious:
        # Without a wanted family the lack of both is told of the first, and a defect of either comes first.
        raise min(serious, key=lambda exc: exc.error_class == "no_default_route")
    return Finding("; ".join(found), "ip")
