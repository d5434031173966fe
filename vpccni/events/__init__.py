"""The vocabulary: everything that can happen, and how it is written down.

* *event*: a fact, named in the past tense; immutable. One module per subject.
* *record*: an event in its envelope: position, clocks, cause.
* *kind*: the stored name of an event type. It is for ever, and is not the Python name.
* *subject*: an id by which an event is found again without folding (address, pod, ENI, lease).
* *chain*: every record's SHA-256 covers the hash before it, so that a changed past is seen.

Three sorts of event: *observations* (what EC2, IMDS, the kernel said), *decisions* (what we chose) and
*effects* (intended, then confirmed, failed, unknown or abandoned). Chosen values are stored, never
computed again on replay.
"""
