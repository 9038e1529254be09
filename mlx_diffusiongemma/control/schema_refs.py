"""The targets of `$ref` in a JSON Schema: pointers, anchors and ids within the same document."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

# Their values are data, even where they look like schemas.
_DATA = frozenset(("const", "default", "enum", "example", "examples"))


class Target(NamedTuple):
    """The schema that a reference leads to.

    pointer: its place from the root, as a JSON pointer. base: the id of the resource that it is part of.
    """

    node: Any
    pointer: str
    base: str


def step(name: str | int) -> str:
    """One step of a JSON pointer."""
    return "/" + str(name).replace("~", "~0").replace("/", "~1")


def own_id(node: Any) -> str | None:
    """The id that a schema gives itself, without a fragment; None when it has none."""
    if not isinstance(node, dict):
        return None
    name = node.get("$id", node.get("id"))
    return urldefrag(name).url or None if isinstance(name, str) else None


class References:
    """The ids and anchors of one document."""

    def __init__(self, root: Any):
        self._root = Target(root, "", "")
        self._resources: dict[str, Target] = {"": self._root}
        self._anchors: dict[tuple[str, str], Target] = {}
        pending = [self._root]
        while pending:
            node, pointer, base = pending.pop()
            if isinstance(node, dict):
                base = self.base(node, base)
                here = Target(node, pointer, base)
                if own_id(node) is not None:
                    self._resources.setdefault(base, here)
                for key in ("$anchor", "$dynamicAnchor", "$id", "id"):  # draft 7 wrote anchors as ids
                    name = node.get(key)
                    if isinstance(name, str):
                        anchor = urldefrag(name).fragment if key in ("$id", "id") else name
                        self._anchors.setdefault((base, anchor), here)
                pending += [
                    Target(inner, pointer + step(key), base)
                    for key, inner in node.items()
                    if key not in _DATA
                ]
            elif isinstance(node, list):
                pending += [Target(inner, pointer + step(index), base) for index, inner in enumerate(node)]

    @staticmethod
    def base(node: dict[str, Any], base: str) -> str:
        """The id of the resource that a schema within `base` belongs to."""
        name = own_id(node)
        return base if name is None else urljoin(base, name)

    def target(self, reference: str, base: str) -> Target | None:
        """Resolve `reference`, written in the resource `base`; None if it leads out of the document."""
        address, fragment = urldefrag(reference)
        resources = [base, ""] if not address else [urljoin(base, address), address]
        for name in resources:  # many authors mean the document where an id in between says otherwise
            resource = self._resources.get(name)
            found = resource and self._within(resource, name, unquote(fragment))
            if found:
                return found
        return None

    def _within(self, resource: Target, name: str, fragment: str) -> Target | None:
        if not fragment:
            return resource
        if not fragment.startswith("/"):
            return self._anchors.get((name, fragment))
        node, pointer, base = resource
        for part in fragment[1:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, dict) and key in node:
                node = node[key]
            else:
                return None
            pointer += step(key)
            base = self.base(node, base) if isinstance(node, dict) else base
        return Target(node, pointer, base)
