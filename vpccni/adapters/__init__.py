"""The outside: one module for each outside thing, and the only place for threads, sockets and clocks.

* *adapter*: translates between one outside thing and a protocol of ``vpccni.ports``; foreign types and
  exceptions end in it.
* *transient*, *permanent*, *unknown*: the three ways in which an outside call fails
  (``vpccni.errors``); every adapter sorts its failures into these.
* *fault*: a failure that a test asks an adapter for, at the very place where the real one happens.
* *double*: an adapter without an outside (``MemoryLog``); it passes the contract suite of the real one.
* *log*: the event log. Its modules are ``log_*``: ``log_format`` (what stands in it, pure),
  ``log_schema`` (the tables), ``log_files`` (the files around it), ``log_verify`` (reading and checking),
  ``log_sqlite`` (the writer) and ``log_memory`` (its double). Together they are one adapter.
"""
