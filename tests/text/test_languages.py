"""A small model writes captions of combinations that it never saw, as well in Chinese and Korean as in English."""

import itertools

import pytest
import torch
from torch import nn

from multicoca.eval.captioning import caption_metrics
from multicoca.model.bundle import Bundle
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.text.tokenizer import TextTokenizer
from multicoca.tokens import Tokens

LANGUAGES = {  # form; sizes, colours, shapes, places
    "English": (
        "a {0} {1} {2} on the {3}",
        "small|medium|large red|green|blue|white circle|square|triangle|cross left|right|top|bottom",
    ),
    "Chinese": ("{3}有一个{0}的{1}{2}", "小|中等|大 红色|绿色|蓝色|白色 圆形|正方形|三角形|十字形 左边|右边|上面|下面"),
    "Korean": (
        "{3}에 있는 {0} {1} {2}",
        "작은|중간|큰 빨간색|초록색|파란색|하얀색 원|정사각형|삼각형|십자가 왼쪽|오른쪽|위쪽|아래쪽",
    ),
}


class FactEncoder(nn.Module):
    """One token for each of four facts, given as numbers."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.width = width
        self.blocks = nn.ModuleList([nn.Embedding(16, width)])

    def forward(self, inputs: dict[str, torch.Tensor]) -> Tokens:
        """Maps {"facts": [batch, 4]}."""
        return Tokens(self.blocks[0](inputs["facts"] + 4 * torch.arange(4)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_unseen_combinations_are_captioned(language):
    form, words = LANGUAGES[language]
    words = [kind.split("|") for kind in words.split(" ")]
    combinations = list(itertools.product(*map(range, map(len, words))))
    texts = [form.format(*(kind[i] for kind, i in zip(words, facts, strict=True))) for facts in combinations]
    facts = torch.tensor(combinations)
    unseen = facts.sum(dim=1) % 4 == 0
    seen_texts = [text for text, is_unseen in zip(texts, unseen, strict=True) if not is_unseen]
    unseen_texts = [text for text, is_unseen in zip(texts, unseen, strict=True) if is_unseen]
    tokenizer = TextTokenizer.learn(seen_texts, 2000, 24)
    sizes = dict(width=32, num_heads=4, mlp_width=64, unimodal_layers=1, multimodal_layers=2, embedding_width=16)
    config = ModelConfig(**sizes, pooler="none", context_length=24)
    network = CoCa(config, {"facts": FactEncoder()}, tokenizer.vocab_size, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    ids, lengths = tokenizer(seen_texts)
    for _ in range(60):
        logits, targets = network.caption_logits("facts", {"facts": facts[~unseen]}, ids, lengths)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
    bundle = Bundle(network.eval(), tokenizer, {})
    captions = [found[0].text for found in bundle.write("facts", *bundle.encode("facts", {"facts": facts[unseen]}))]
    assert caption_metrics(captions, [[text] for text in unseen_texts])["exact_match"] >= 0.95
