"""Forensics: questions to a log file, long after and far away from the node that wrote it.

* *log*: the file that an agent writes, or a copy of it; never changed here.
* *moment*: a place in the log, given as a time or as an event's number.
* *holding*: the time from an address's assignment to the end of its lease.
* *story*: what happened to one pod, in order, with the cause of each step.
* *verify*: chain, decoding, and every fold against every snapshot.

Only pure parts and the standard library: an answer comes in a tenth of a second.
"""
