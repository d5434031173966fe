"""Fixtures for everybody: a world of network namespaces for tests marked ``netns``."""

from __future__ import annotations

from tests.netns import fabric, netns_world, pytest_runtest_protocol

__all__ = ["fabric", "netns_world", "pytest_runtest_protocol"]
