# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-net`: what all checks take together, against the slowest of them and against one after the other.

In network namespaces, as root. Prints JSON; exit status 1 if all together take more than 1.2 times the slowest.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ansible_collections.goldsmith.images.tests.support import network
from ansible_collections.goldsmith.images.tests.support.broken_network import SERVER, Net

LIMIT = 1.2
SLOW = (200, 400, 600, 800)  # milliseconds before these servers answer


def measure(net: Net) -> dict[str, Any]:
    for number, delay in enumerate(SLOW):
        net.serve(net.server, "tcp", SERVER, 9200 + number, f"slow:{delay}")
        net.server.wait_for_port(9200 + number)
    options: dict[str, Any] = {
        "http": [{"url": f"http://{SERVER}:{9200 + number}/", "proxy": "none"} for number in range(len(SLOW))] * 5,
        "tcp": [f"{SERVER}:80", f"{SERVER}:443"] * 5,
        "icmp": {"targets": [SERVER]},
        "mtu": {"targets": [SERVER]},
        "dns": {"names": ["www.example.test"], "hijack_probe": True},
        "time": {"synchronised": False, "servers": [SERVER]},
    }
    together = net.client.validate(**options)
    apart = net.client.validate(**options, parallel=1, timeout=60)
    slowest = max(entry["latency_ms"] for entry in together["checks"])
    return {
        "checks": len(together["checks"]),
        "all_passed": together["ok"] and apart["ok"],
        "slowest_ms": slowest,
        "together_ms": round(together["elapsed_ms"], 1),
        "one_after_the_other_ms": round(apart["elapsed_ms"], 1),
        "ratio_to_slowest": round(together["elapsed_ms"] / slowest, 3),
        "ratio_to_one_after_the_other": round(together["elapsed_ms"] / apart["elapsed_ms"], 3),
        "memory_mb": round(together["rss_mb"], 1),
    }


def main() -> None:
    if network.WHY_NOT:
        sys.exit(f"bench: {network.WHY_NOT}")
    with tempfile.TemporaryDirectory(prefix="bench-net-") as folder, ExitStack() as stack:
        net = Net(Path(folder), stack)
        net.lay_cables()
        net.start_servers()
        found = measure(net)
    print(json.dumps(found, indent=2))
    sys.exit(0 if found["all_passed"] and found["ratio_to_slowest"] <= LIMIT else 1)


if __name__ == "__main__":
    main()
