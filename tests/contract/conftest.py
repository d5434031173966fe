"""The marked tests of this directory run in network namespaces of their own (see tests/netns.py)."""

from __future__ import annotations

import pytest

from tests import netns


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """As ``tests.netns``; and what is left set up of a test before this one is torn down for the next."""
    done = netns.pytest_runtest_protocol(item, nextitem)
    if done:
        item.session._setupstate.teardown_exact(nextitem)
    return done
