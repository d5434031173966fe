"""Folds over the log: what is true now, and what was true then.

* *state*: everything the agent knows, rebuilt from records alone.
* *evolve*: the one door by which a record changes the state. Total, deterministic, silent.
* *lease*: an open assignment of an address to a sandbox.
* *rest*: the time after a lease in which its address is given to nobody.
* *snapshot*: a short list of records whose fold equals the state.

No clock, no I/O: questions about time take ``now`` as an argument.
"""
