# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A network that is broken on purpose, as tests/support/broken_network.py lays it out: once for all these tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from ansible_collections.goldsmith.images.tests.support.broken_network import Net


@pytest.fixture(scope="package")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    with ExitStack() as stack:
        found = Net(tmp_path_factory.mktemp("net"), stack)
        found.lay_cables()
        found.start_servers()
        yield found
