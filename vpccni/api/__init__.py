"""What callers see: the CNI socket and the read-only views.

* *request / reply*: plain records; handlers take one and give the other, and know nothing of aiohttp.
* *verb*: a CNI command (ADD, DEL, CHECK, STATUS, GC).
* *result*: what a successful ADD prints, in the version that the configuration asks for.
* *fault*: a CNI error: ``code`` for the runtime, ``reason`` for people.
* *view*: a JSON picture of the durable state.
"""
