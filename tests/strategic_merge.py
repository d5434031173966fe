"""What ``kubectl apply`` makes of an object that is there already, for the fields that a DaemonSet has.

Kubernetes merges lists of named things by their name (``patchMergeKey`` in its Go types), replaces other lists as a
whole, and merges maps. What the new file lacks is removed only if the file of the last ``apply`` had it; that file
is kept in an annotation of the object, and nobody but ``kubectl apply`` writes it.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""Lists that are merged, and by what. ``volumes`` are merged by name, each replaced as a whole (``retainKeys``)."""


def apply(live: Any, file: Any, last_applied: Any = None, *, name: str = "") -> Any:
    """The object after ``kubectl apply`` (client side).

    Args:
        live: The object as it is.
        file: The new file.
        last_applied: The file of the last ``apply``; ``None`` when the object came by another way.
        name: Of the field that is merged; empty for a whole object.
    """
    if isinstance(live, dict) and isinstance(file, dict):
        last = last_applied if isinstance(last_applied, dict) else {}
        merged = {key: deepcopy(value) for key, value in live.items() if key in file or key not in last}
        for key, value in file.items():
            merged[key] = apply(live[key], value, last.get(key), name=key) if key in live else deepcopy(value)
        return merged
    if name in MERGE_KEYS and isinstance(live, list) and isinstance(file, list):
        return _merge_lists(live, file, last_applied if isinstance(last_applied, list) else [], name)
    return deepcopy(file)


def _merge_lists(live: list[Any], file: list[Any], last: list[Any], name: str) -> list[Any]:
    key = MERGE_KEYS[name]
    new, old = {each[key]: each for each in file}, {each[key]: each for each in last}
    merged = [
        (deepcopy(new[each[key]]) if name == "volumes" else apply(each, new[each[key]], old.get(each[key])))
        if each[key] in new
        else deepcopy(each)
        for each in live
        if each[key] in new or each[key] not in old
    ]
    present = {each[key] for each in live}
    return merged + [deepcopy(each) for each in file if each[key] not in present]
