# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role, in a virtual machine of its own: one test a scenario of molecule/ and release of Debian.

The scenario `default` makes the warm snapshot of a release first, if there is none yet. The others start with the first
test of all, one beside whatever is tested, and side by side once these tests are reached (MOLECULE_WORKERS, default 2):
a machine keeps about one processor busy.
MOLECULE_SCENARIOS="hardening cleanup" picks some. MOLECULE_RESTART=no leaves out most restarts; `make test` restarts
the image instead. Logs stay in .cache/molecule/, a folder a release.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support.molecule_runs import ROOT, Background, Run

# The slow ones first, or one of them runs alone at the end.
SLOW = ["kubernetes_prerequisites", "hardening", "container_runtime"]
# Only `make test-all` waits for a variant of another one, for some hundred megabytes of packages, and for all scenarios
# on a second base disk.
MATRIX = ["cleanup_first_boot", "cml_host", "hardening_first", "hardening_lockout", "hardening_strict"]
RELEASES = ["trixie", "bookworm"]
# The role's platforms are others.
NOT_FOR = {"bookworm": ["cml_host"]}


def wanted() -> list[str]:
    """Names of the scenarios to run; one that does not exist is an error and no empty run."""
    known = sorted(path.parent.name for path in ROOT.glob("molecule/*/converge.yml"))
    picked = os.environ.get("MOLECULE_SCENARIOS", "").replace(",", " ").split() or known
    unknown = sorted(set(picked) - set(known))
    if unknown:
        raise pytest.UsageError(f"MOLECULE_SCENARIOS: no scenario {', '.join(unknown)}; there are {', '.join(known)}")
    return sorted(picked, key=lambda name: SLOW.index(name) if name in SLOW else len(SLOW))


def parameters() -> list[Any]:
    return [
        pytest.param(release, name, marks=pytest.mark.slow_matrix if name in MATRIX or release != RELEASES[0] else ())
        for release in RELEASES
        for name in ["default", *wanted()]
        if name not in NOT_FOR.get(release, [])
    ]


@pytest.mark.parametrize(("release", "scenario"), parameters())
def test_scenario(release: str, scenario: str, molecule_runs: Background) -> None:
    outcome = molecule_runs.outcome(Run(release, scenario))
    print(f"{scenario} on {release}: {outcome.tests} checks, {outcome.seconds:.0f} s, log {outcome.log}")
    if outcome.code:
        tail = Path(outcome.log).read_text(encoding="utf-8", errors="replace").splitlines()[-120:]
        pytest.fail(
            f"{scenario} on {release} failed (exit code {outcome.code}), log {outcome.log}:\n" + "\n".join(tail),
            pytrace=False,
        )
    # Molecule only warns when it finds no test.
    assert outcome.tests > 0 or scenario == "default", f"{scenario}: no check was run, log {outcome.log}"
