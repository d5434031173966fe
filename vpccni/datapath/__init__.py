"""What the node's network stack should look like, and how it differs from what is there.

Five words:

- *wiring*: what the datapath needs to know of a lease (:class:`~vpccni.datapath.objects.LeaseWiring`) or
  of an ENI (:class:`~vpccni.datapath.objects.EniWiring`);
- *desired*: links, addresses, routes, rules and the nft table that follow from all wirings;
- *observed*: what the kernel says is there, ours and foreign;
- *difference*: what has to be done to get from the second to the first. A difference is a plan, additions
  come before deletions, and nothing that is not ours is ever in it;
- *applied*: what came of it.

Everything here is a pure function over plain records: no socket, no clock, no file.
"""
