"""Reads checkpoints of `torch.distributed.checkpoint` without running what a pickle in them may ask for.

torch unpickles a checkpoint's `.metadata` and its entries that are no tensors. Here the first may only name the classes
that torch itself writes there, and the second only what `torch.load(weights_only=True)` allows. Any damage is an
`UnpicklingError`.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    *((_METADATA, name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex",
                                     "StorageMeta", "TensorProperties", "TensorStorageMetadata",
                                     "_MEM_FORMAT_ENCODING")),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Unpickles what torch writes as metadata."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in _ALLOWED or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which no checkpoint holds; it is not called")


class Reader(FileSystemReader):
    """torch's reader of a checkpoint's folder, for metadata from anywhere."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Reads what a checkpoint holds.

        Raises:
            pickle.UnpicklingError: it is damaged, or names something else than metadata.
            OSError: it cannot be read.
        """
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            content = file.read()
        try:
            metadata = _Unpickler(io.BytesIO(content)).load()
            metadata.storage_meta.load_id = self.load_id
        except pickle.UnpicklingError:
            raise
        except Exception as error:  # a damaged pickle may raise anything
            raise pickle.UnpicklingError(f"its metadata is damaged: {type(error).__name__}: {error}") from error
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"its metadata is a {type(metadata).__name__}")
        return metadata


class Planner(DefaultLoadPlanner):
    """torch's planner, which lets entries that are no tensors be plain values only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Takes in an entry that is no tensor."""
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
