"""By which ids an event is found again, so that "who had 10.0.3.7" needs no fold of the whole log."""

from __future__ import annotations

from vpccni.events import address, effect, eni, sandbox
from vpccni.events.codec import Event
from vpccni.model import Binding, PodRef, SandboxKey

Subject = tuple[str, str]
"""(kind, id). Kinds: ``address``, ``cidr``, ``eni``, ``pod`` (namespace/name), ``uid``, ``container``,
``lease`` (its id), ``intent`` (its id)."""


def _sandbox(key: SandboxKey | None, pod: PodRef) -> list[Subject]:
    found = [("container", key.container_id)] if key is not None and key.container_id else []
    if pod.name:
        found.append(("pod", f"{pod.namespace}/{pod.name}"))
    if pod.uid:
        found.append(("uid", pod.uid))
    return found


def _bindings(bindings: tuple[Binding, ...]) -> list[Subject]:
    found: list[Subject] = []
    for binding in bindings:
        found.append(("address", binding.address))
        if binding.eni:
            found.append(("eni", binding.eni))
    return found


def subjects_of(seq: int, event: Event) -> list[Subject]:
    """Every subject of one event, without duplicates. ``seq`` is the record's own position."""
    found: list[Subject] = []
    match event:
        case sandbox.AddressAssigned():
            found = [("lease", str(seq)), *_sandbox(event.key, event.pod), *_bindings(event.bindings)]
        case sandbox.AddressHeld():
            found = [("lease", str(seq)), *_sandbox(None, event.pod), *_bindings(event.bindings)]
        case sandbox.LeaseLocated():
            found = [("lease", str(event.lease)), *_bindings(event.bindings)]
        case sandbox.LeaseIdentified():
            found = [("lease", str(event.lease)), *_sandbox(event.key, event.pod)]
        case sandbox.AddressUnexplained():
            found = [("address", one) for one in event.addresses]
        case sandbox.LeaseEnded():
            found = [("lease", str(event.lease)), *_sandbox(event.key, event.pod)]
            found += _bindings(event.bindings)
        case sandbox.AddRequested():
            found = _sandbox(event.key, event.pod)
        case sandbox.AddFailed():
            found = _sandbox(event.key, event.pod)
            if event.lease:
                found.append(("lease", str(event.lease)))
        case (
            sandbox.SandboxWired()
            | sandbox.SandboxUnwired()
            | sandbox.LeaseSuspected()
            | sandbox.LeaseCleared()
        ):
            found = [("lease", str(event.lease))]
        case address.CidrsOwned() | address.CidrsReleased():
            found = [("eni", event.eni), *(("cidr", cidr) for cidr in event.cidrs)]
        case address.CidrSuspected() | address.CidrCleared():
            found = [("eni", event.eni), ("cidr", event.cidr)]
        case eni.EniAdopted():
            found = [("eni", event.facts.id)]
        case (
            eni.EniAttached()
            | eni.EniLinkReady()
            | eni.EniLinkLost()
            | eni.EniSuspected()
            | eni.EniCleared()
            | eni.EniDetached()
            | eni.EniGone()
        ):
            found = [("eni", event.eni)]
        case effect.EffectIntended():
            found = [("intent", str(seq))] + ([("eni", event.eni)] if event.eni else [])
        case (
            effect.EffectConfirmed()
            | effect.EffectFailed()
            | effect.EffectUnknown()
            | effect.EffectAbandoned()
        ):
            found = [("intent", str(event.intent))] + ([("eni", event.eni)] if event.eni else [])
        case _:
            pass
    return list(dict.fromkeys(found))
