from tests.netns import fabric, netns_world, pytest_runtest_protocol

__all__ = ["fabric", "netns_world", "pytest_runtest_protocol"]
