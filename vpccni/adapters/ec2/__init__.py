"""EC2, through the SDK.

Five words that its modules use:

* *action*: one operation of the EC2 API, by EC2's own name (``AttachNetworkInterface``).
* *reply*: what the SDK decoded of EC2's answer.
* *facts*: a reply in our own words (:class:`vpccni.model.EniFacts`).
* *sent*: the request may have reached EC2, so a missing reply proves nothing.
* *lean*: the SDK's data without the nine tenths that the agent never uses.

Importing this package costs nothing: the SDK (0.3 s, 20 MiB) is imported by ``AwsEc2.open``, on a thread.
"""

from __future__ import annotations

from vpccni.adapters.ec2.calls import AwsEc2

__all__ = ["AwsEc2"]
