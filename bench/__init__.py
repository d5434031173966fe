"""Benchmarks: what a user of the node feels, measured from outside through the real executable.

Five words. A *section* is a group of measurements that share a stage. A *stage* is a lab with nodes whose agents
run and whose pools are filled. A *launcher* is a small process in a node's namespace that starts CNI executables
and times their lives; ours and the peer's go through the same one, in turns. The *peer* is Debian's ``ptp`` with
``host-local``. A *result* is a median of ours, the same of what it is compared with, and their ratio.

``python -m bench`` needs no flags; `docs/benchmarks.md` says what each result means.
"""
