"""Meshes in STL files, binary or text, every triangle of which is parsed or refused.

Source: 3D Systems' "StereoLithography Interface Specification" (1989).
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float64

from multicoca.reading import UnreadableFileError
from multicoca_points.surface import Surface
from multicoca_points.table import read_table

_HEADER_BYTES = 84
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_END = re.compile(rb"^[ \t]*endsolid[^\r\n]*", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb"\s*solid[^\r\n]*", re.IGNORECASE)
_CORNER = re.compile(rb"vertex\s+(\S+)\s+(\S+)\s+(\S+)", re.IGNORECASE)


def read_stl(data: bytes) -> Surface:
    """Reads an STL file, binary or text."""
    count = int.from_bytes(data[80:84], "little") if len(data) >= _HEADER_BYTES else -1
    held = len(data) - _HEADER_BYTES
    if count >= 0 and held == count * _TRIANGLE.itemsize:
        rows = np.frombuffer(data, _TRIANGLE, count, _HEADER_BYTES) if count else np.empty(0, _TRIANGLE)
        xyz = rows["corners"].reshape(-1, 3).astype(np.float64)
        remarks = ("its attributes, where some programs put colours, are not read",) if rows["attribute"].any() else ()
    elif data.lstrip()[:5].lower() == b"solid":
        xyz, remarks = _stl_text(data), ()
    else:
        raise UnreadableFileError(
            f"it is no STL file: it declares {count} triangles, which take {count * _TRIANGLE.itemsize} bytes, and "
            f"{held} are there"
        )
    return Surface(xyz, np.arange(len(xyz)).reshape(-1, 3), remarks=remarks)


def _stl_text(data: bytes) -> Float64[np.ndarray, "corners 3"]:
    *solids, rest = _END.split(data)
    if rest.strip() or not solids or not all(solid.lstrip()[:5].lower() == b"solid" for solid in solids):
        raise UnreadableFileError("it is cut off or broken: it is not made of parts from 'solid' to 'endsolid'")
    bodies = b"\n".join(_NAME.sub(b"", solid, count=1) for solid in solids)  # a name may hold any word
    lower = bodies.lower()
    ends, corners = lower.count(b"endfacet"), lower.count(b"vertex")
    facets = lower.count(b"facet") - ends
    found = _CORNER.findall(bodies)
    if not 3 * facets == 3 * ends == corners == len(found):
        raise UnreadableFileError(f"it is cut off or broken: it has {facets} facets and {len(found)} vertices")
    table = read_table(b"\n".join(map(b" ".join, found)), 1)
    return table if len(table) else np.empty((0, 3))
