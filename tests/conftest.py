# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All suites run in one pytest, the quick ones first; a failure in one does not keep the next from running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.tests.support.molecule_runs import Background, Run

TESTS = Path(__file__).resolve().parent
# What fails soonest stands first; what stands on everything else comes last, when no scenario of Molecule runs beside
# it: the machines of an image under test miss systemd's time-outs when they share the processors with a third.
ORDER = ("unit", "collection", "integration", "molecule", "e2e", "bench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def suite(item: pytest.Item) -> int:
        path = item.path
        name = path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else ""
        return ORDER.index(name) if name in ORDER else len(ORDER)

    items.sort(key=suite)


@pytest.fixture(scope="session", autouse=True)
def molecule_runs(request: pytest.FixtureRequest) -> Iterator[Background]:
    """The selected scenarios, in the order of their tests; they run from the first test on, because most tests wait."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    picked = [item.callspec.params for item in items if item.originalname == "test_scenario"]
    runs = [Run(str(each["release"]), str(each["scenario"])) for each in picked]
    running = Background(runs, int(os.environ.get("MOLECULE_WORKERS", "2")))
    try:
        yield running
    finally:
        running.close()
