"""The tokenizer: byte-level BPE of the `tokenizers` library, learned from captions or read from a file.

Ids of BOS, EOS and PAD come from the file. Padding is known by lengths, never by an id: PAD only fills.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

BEGIN, END, PAD = "<bos>", "<eos>", "<pad>"
_LENGTH_MULTIPLE = 8  # few different lengths: kernels are prepared anew for every shape


class TextTokenizer:
    """Turns texts into padded ids with their lengths, and ids into texts.

    Args:
        tokenizer: a tokenizer whose vocabulary holds `<bos>`, `<eos>` and `<pad>`.
        context_length: the longest text in tokens, BOS and EOS included; longer ones are cut before EOS.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int):
        missing = [token for token in (BEGIN, END, PAD) if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(f"the tokenizer has no token {', '.join(missing)}; add them as special tokens")
        self._tokenizer = tokenizer
        self.context_length = context_length
        self.begin_id, self.end_id, self.pad_id = (tokenizer.token_to_id(token) for token in (BEGIN, END, PAD))

    @classmethod
    def learn(cls, texts: Iterable[str], vocab_size: int, context_length: int) -> TextTokenizer:
        """Learns a lower-casing byte-level BPE; the vocabulary is smaller where the texts need less."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BEGIN, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, context_length)

    @classmethod
    def load(cls, file: Path, context_length: int) -> TextTokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            ValueError: the file is missing or not a tokenizer.
        """
        if not file.is_file():
            raise ValueError(f"there is no tokenizer at {file}; expected a tokenizer.json of the tokenizers library")
        return cls(Tokenizer.from_str(file.read_text(encoding="utf-8")), context_length)

    def to_json(self) -> str:
        """Returns the content of `tokenizer.json`."""
        return self._tokenizer.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"]]:
        """Encodes texts.

        Returns:
            (ids padded to the longest text of the batch or a little more, number of real tokens of each).
        """
        rows = []
        for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False):
            rows.append([self.begin_id, *encoding.ids[: self.context_length - 2], self.end_id])
        lengths = torch.tensor([len(row) for row in rows])
        width = min(-(-int(lengths.max()) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, self.context_length)
        ids = torch.full((len(rows), width), self.pad_id)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return ids, lengths

    def decode(self, ids: Int[Tensor, "batch length"]) -> list[str]:
        """Returns the texts, each up to its first EOS."""
        texts = []
        for row in ids.tolist():
            row = row[: row.index(self.end_id)] if self.end_id in row else row
            texts.append(self._tokenizer.decode(row, skip_special_tokens=True).strip())
        return texts
