"""The kernel-real VPC of the lab.

Five words:

* a *world* is the private set of namespaces in which all of this happens (`enter`); nothing works outside
  one;
* a *node* is a network namespace that plays an EC2 instance; pods are namespaces too, which others wire to a
  node;
* to *plug* an ENI is to put a link with its MAC into a node, the other end of which is a *port* of the VPC
  router;
* the *router* answers ARP, routes by address, and drops what a VPC drops (`router`), counting it by ENI;
* the *internet* is one host that reaches, and is reached from, only private addresses with a *public
  mapping*.

To use it: `enter.enter_world` first thing in a program, then `fabric.Fabric` as an async context manager.
This package imports nothing by itself, so that entering a world costs no more than the standard library.
"""
