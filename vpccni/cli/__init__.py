"""The command line for people: what an operator asks a node, and the lab.

Five words:

* the *socket* is the agent's, on this node or on one of a standing lab (``--node``);
* a *view* is what the agent answers there: status, pods, ENIs, events;
* a *sentence* is how everything that goes wrong is said: what, and what to do about it; never a traceback;
* ``--json`` prints the same for machines, and nothing else on standard output;
* the *exit code*: 0 good, 1 not good, 2 wrong usage, 3 nobody answered.

The agent, the probe and replay have entries of their own (``vpccni.__main__``) and import nothing of this.
"""
