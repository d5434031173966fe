"""Decisions: what to do next to keep the pool warm, and why. Pure: no clock, no I/O, no state of its own.

* *view*: what the planner is shown of one ENI: counts, and flags for what is allowed on it just now.
* *supply*: addresses that a pod can have by the time EC2 could bring another one: free, soon rested,
  being assigned, coming with an ENI. Each is counted once. Resting addresses are no supply.
* *target*: how many free addresses the policy wants (``WARM_ENI_TARGET``, or ``WARM_IP_TARGET`` and
  ``MINIMUM_IP_TARGET``) beside those that pods hold or wait for.
* *step*: one change of EC2 that leaves its executor nothing to choose.
* *plan*: every step of the whole deficit or surplus at once, and its reason; a plan without steps says why.

A plan is advice. It was made outside the writer, so the writer checks each step again, against the state
of the moment, before it intends anything.

``sizing`` counts and compares, ``release`` chooses what is given back, ``warm_pool`` makes the plan.
"""
