"""vpccni: pod networking for Kubernetes nodes on EC2, from an event log.

Words used throughout, one for each thing:

* *allocate / deallocate*: EC2 gives an address to the node, or takes it back.
* *assign / unassign*: the node gives an owned address to a sandbox, or takes it back.
* *lease*: one assignment, named by the sequence number of the event that made it.
* *observed* is what we were told, *owned* what the log says, *desired* what policy wants.
* *resting*: an address whose lease ended less than a cooldown ago.
"""

__version__ = "0.1.0"
