"""The lab: an emulated AWS region with real kernel networking, for tests, demo, benchmarks and curiosity.

Nothing outside this package may import it.
"""
