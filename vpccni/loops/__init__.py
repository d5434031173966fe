"""What runs: each loop keeps one thing true.

* *write*: the log is the truth; every change goes through one task.
* *serve CNI*: every request of the runtime gets its answer.
* *keep warm*: there are free addresses before somebody asks.
* *reconcile*: the books agree with EC2, IMDS and the kernel.
* *housekeeping*: nothing piles up: veths, dead sandboxes, the write-ahead log.

A loop takes no input: it is woken by an event and by a period, and then looks at the state.
"""
