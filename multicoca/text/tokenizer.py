"""The tokenizer: one of the `tokenizers` library, learned from captions or read from a file.

What a `tokenizer.json` says is used as it stands: its post-processor gives the ids of BOS and EOS, its padding
the id of PAD. Padding is known by lengths, never by an id: PAD only fills.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from multicoca.text.clean import CLEANERS, replace_surrogates
from multicoca.text.scripts import CLUSTER, UNSPACED, character_starts

_BEGIN, _END, _PAD = "<bos>", "<eos>", "<pad>"
# GPT-2's expression, but each character of a script without spaces is a piece: no merge crosses it
_PIECES = (
    rf"{CLUSTER}|'s|'t|'re|'ve|'m|'ll|'d| ?[\p{{L}}&&[^{UNSPACED}]]+| ?[\p{{N}}&&[^{UNSPACED}]]+"
    rf"| ?[^\s\p{{L}}\p{{N}}{UNSPACED}]+|\s+(?!\S)|\s+"
)
_LENGTH_MULTIPLE = 8  # few different lengths: kernels are prepared anew for every shape


@dataclass(frozen=True)
class TextConfig:
    """The tokenizer.

    Attributes:
        tokenizer: a tokenizer.json that puts a token before and one behind each text, or "clip" for CLIP's, with which
            losses of different data compare; None learns one from the training captions.
        vocab_size: of a learned one, at the most.
        clean: what is done to texts first: "none", or "clip" as for CLIP's tokenizer.
    """

    tokenizer: str | None = None
    vocab_size: int = 16384
    clean: str = "none"

    def __post_init__(self) -> None:
        if self.clean not in CLEANERS:
            raise ValueError(f"text.clean is '{self.clean}'; choose one of {', '.join(CLEANERS)}")
        if self.tokenizer == "clip" and self.clean != "clip":
            raise ValueError(f"text.tokenizer is clip and text.clean '{self.clean}'; CLIP's needs text.clean=clip")
        if self.vocab_size < 260:  # the bytes, and four special tokens
            raise ValueError(f"text.vocab_size is {self.vocab_size}; expected at least 260, the bytes and a few marks")


class TextTokenizer:
    """Turns texts into padded ids with their lengths, and ids into texts.

    Args:
        tokenizer: puts one token before and one behind each text (its post-processor does).
        context_length: the longest text in tokens, BOS and EOS included; longer ones are cut before EOS, at the end
            of a character.
        clean: what is done to texts first, a key of `multicoca.text.clean.CLEANERS`.

    Attributes:
        begin_id: BOS.
        end_id: EOS.
        pad_id: what fills; EOS where the tokenizer names nothing.
        never_written: ids that no caption may hold, the special tokens but EOS.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int, clean: str = "none"):
        around = tokenizer.encode("").ids
        if len(around) != 2:
            raise ValueError(
                f"the tokenizer makes {len(around)} tokens of an empty text; expected 2, one that begins and one that "
                "ends it: set its post_processor, for example TemplateProcessing(single='<bos> $A <eos>', ...)"
            )
        if clean not in CLEANERS:
            raise ValueError(f"text.clean is '{clean}'; choose one of {', '.join(CLEANERS)}")
        self._clean = CLEANERS[clean]
        self._json = tokenizer.to_str(pretty=True)
        self._tokenizer = Tokenizer.from_str(self._json)
        self._tokenizer.no_padding()  # both are done here, with lengths
        self._tokenizer.no_truncation()
        self.context_length = context_length
        self.begin_id, self.end_id = around
        self.pad_id: int = (tokenizer.padding or {}).get("pad_id", self.end_id)
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.never_written = tuple(sorted(special - {self.end_id}))
        self._has_cut = False

    @classmethod
    def learn(cls, texts: Iterable[str], vocab_size: int, context_length: int) -> TextTokenizer:
        """Learns a lower-casing byte-level BPE; the vocabulary is smaller where the texts need less.

        Words of scripts without spaces are split into characters, so that new sentences need no new pieces.
        """
        tokenizer = Tokenizer(models.BPE())
        # a first word is the same piece as a later one, which has a space before it
        lead = [normalizers.Prepend(" "), normalizers.Replace(Regex(rf"\A (?=[ {UNSPACED}])"), "")]
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), *lead])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[_PAD, _BEGIN, _END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(map(replace_surrogates, texts), trainer)
        enclose(tokenizer, _BEGIN, _END, _PAD)
        return cls(tokenizer, context_length)

    @classmethod
    def load(cls, file: Path, context_length: int, clean: str = "none") -> TextTokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            ValueError: the file is missing or not a tokenizer.
        """
        if not file.is_file():
            raise ValueError(f"there is no tokenizer at {file}; expected a tokenizer.json of the tokenizers library")
        try:
            return cls.from_json(file.read_text(encoding="utf-8"), context_length, clean)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def from_json(cls, content: str, context_length: int, clean: str = "none") -> TextTokenizer:
        """Makes it of the content of a `tokenizer.json`.

        Raises:
            ValueError: it is not a tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"this is no tokenizer.json of the tokenizers library: {error}") from error
        return cls(tokenizer, context_length, clean)

    def to_json(self) -> str:
        """Returns the content of `tokenizer.json`."""
        return self._json

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"]]:
        """Encodes texts.

        Returns:
            (ids padded to the longest text of the batch or a little more, number of real tokens of each).
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"got {texts!r}; expected a list of at least one text")
        words = self.context_length - 2
        rows = []
        texts = [replace_surrogates(self._clean(text)) for text in texts]
        for text, encoding in zip(texts, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            if len(encoding.ids) > words and not self._has_cut:
                self._has_cut = True
                warnings.warn(
                    f"a text has {len(encoding.ids)} tokens; texts are cut to {words} and their end, for the model's "
                    f"context length is {self.context_length}. This is said once",
                    stacklevel=2,
                )
            rows.append([self.begin_id, *encoding.ids[: _cut(text, encoding, words)], self.end_id])
        lengths = torch.tensor([len(row) for row in rows])
        width = min(-(-int(lengths.max()) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, self.context_length)
        ids = torch.full((len(rows), width), self.pad_id)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return ids, lengths

    def decode(self, ids: Int[Tensor, "batch length"]) -> list[str]:
        """Returns the texts, each up to its first EOS and without an incomplete character at the end."""
        texts = []
        for row in ids.tolist():
            row = row[: row.index(self.end_id)] if self.end_id in row else row
            text = self._tokenizer.decode(row, skip_special_tokens=True)
            texts.append(text.rstrip("\ufffd").strip())  # the decoder's sign for bytes that are no character
        return texts


def _cut(text: str, encoding: Encoding, limit: int) -> int:
    """Returns how many tokens of a text to use: at most `limit`, up to the end of a grapheme cluster.

    A cluster that does not fit by itself is cut at the end of a code point.
    """
    spans = encoding.offsets
    if len(spans) <= limit:
        return len(spans)
    whole = [number for number in range(limit, 0, -1) if spans[number - 1][1] <= spans[number][0]]
    starts = character_starts(text)
    return next((number for number in whole if spans[number][0] in starts), whole[0] if whole else 0)


def enclose(tokenizer: Tokenizer, begin: str, end: str, pad: str) -> None:
    """Makes a tokenizer put a token before and one behind each text, and name the one that pads."""
    ids = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ids)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
