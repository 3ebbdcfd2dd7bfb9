"""What writing a text remembers, so that every token is computed once: keys and values of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from multicoca.tokens import Tokens


class KeyValueCache:
    """Keys and values of one self-attention layer for all tokens so far, written in place.

    Args:
        capacity: the longest text, in tokens.

    Attributes:
        length: tokens so far.
        memory: keys and values of the context, a row for each item, in a layer that sees it and has read it.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.memory: tuple[Float[Tensor, "items heads keys depth"], Float[Tensor, "items heads keys depth"]] | None
        self.memory = None
        self._kept: Float[Tensor, "two rows heads capacity depth"] | None = None

    def append(
        self, k: Float[Tensor, "rows heads new depth"], v: Float[Tensor, "rows heads new depth"]
    ) -> tuple[Float[Tensor, "rows heads length depth"], Float[Tensor, "rows heads length depth"]]:
        """Adds new tokens and returns the keys and values of all.

        Raises:
            ValueError: the text is longer than the capacity, or several tokens come to a cache that is not empty,
                which a causal flag could not tell apart.
        """
        rows, heads, new, depth = k.shape
        if self.length + new > self.capacity:
            raise ValueError(f"the text has {self.length + new} tokens, more than the {self.capacity} it was begun for")
        if self.length and new > 1:
            raise ValueError(f"{new} tokens came to a text of {self.length}; only the first call takes more than one")
        if self._kept is None:
            self._kept = k.new_empty(2, rows, heads, self.capacity, depth)
        self._kept[0, :, :, self.length : self.length + new] = k
        self._kept[1, :, :, self.length : self.length + new] = v
        self.length += new
        keys, values = self._kept[:, :, :, : self.length]
        return keys, values

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Makes row i go on from what row `rows[i]` was."""
        if self._kept is not None:
            self._kept[:, :, :, : self.length] = self._kept[:, rows, :, : self.length]


@dataclass(frozen=True)
class DecodingState:
    """What the decoder knows of the texts it is writing, several for each item of the context.

    Attributes:
        unimodal: caches of the text-only half, a row for each text.
        multimodal: caches of the upper half's self-attention, likewise, and of what it sees of the context.
        context: what the texts are about; all texts of an item share it.
    """

    unimodal: Sequence[KeyValueCache]
    multimodal: Sequence[KeyValueCache]
    context: Tokens

    @property
    def length(self) -> int:
        """Tokens of each text so far."""
        return self.multimodal[0].length if self.multimodal else self.unimodal[0].length

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Makes text i go on from what text `rows[i]` was, one of the same item."""
        for cache in (*self.unimodal, *self.multimodal):
            cache.select(rows)
