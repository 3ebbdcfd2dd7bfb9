"""Writes small tars for tests."""

import io
import json
import tarfile
from pathlib import Path


def write_tar(file: Path, members: dict[str, bytes | str | dict | list] | list[tuple[str, bytes]]) -> Path:
    """Writes members as they come; dicts and lists become JSON."""
    file.write_bytes(tar_bytes(members))
    return file


def tar_bytes(members) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            content = json.dumps(content) if isinstance(content, (dict, list)) else content
            data = content.encode() if isinstance(content, str) else content
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return stream.getvalue()
