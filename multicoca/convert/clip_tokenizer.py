"""CLIP's tokenizer as a `tokenizer.json`: the same ids as open_clip's, whose vocabulary is read from its package.

open_clip splits with a regular expression that ignores case; after lower-casing that matters for one letter alone,
the long s, which the expression here names. Its padding has the id 0, which is also the word piece "!". A text that
is too long is cut at the end of a character; open_clip may cut inside one.
"""

from __future__ import annotations

import gzip
from importlib.resources import files

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from multicoca.modality import require
from multicoca.text.tokenizer import TextTokenizer, enclose

CLEAN = "clip"
_NUM_MERGES = 49152 - 256 - 2  # of the file's; CLIP's vocabulary has 256 bytes, 256 that end a word, merges, 2 marks
_BEGIN, _END, _PAD = "<start_of_text>", "<end_of_text>", "!"
_WORDS = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def clip_tokenizer(context_length: int) -> TextTokenizer:
    """Builds it.

    Args:
        context_length: the longest text in tokens, with the marks of beginning and end.

    Raises:
        ImportError: open_clip, which brings the vocabulary, is not installed.
    """
    require("open_clip", "convert")
    packed = (files("open_clip") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : _NUM_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = _letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    space = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(" ")[0][0]
    tokenizer.decoder = decoders.Sequence([decoders.Replace("</w>", space), decoders.ByteLevel()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (_BEGIN, _END)])
    enclose(tokenizer, _BEGIN, _END, _PAD)
    return TextTokenizer(tokenizer, context_length, CLEAN)


def _letters() -> list[str]:
    """Returns the characters that stand for the 256 bytes: those that can be seen first, then the others' stand-ins.

    Source: GPT-2's byte-level encoding, in the order that CLIP numbers it.
    """
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, seen), *(chr(256 + number) for number in range(256 - len(seen)))]
