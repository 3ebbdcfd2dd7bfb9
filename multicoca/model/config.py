"""The core's sizes and the few choices about its form.

Defaults are the paper's (CoCa, arXiv 2205.01917, section 3.2). What open_clip's CoCa does in another way is an
option here, so that its weights run in the same core: `pooler` shared, `adapters` where_needed, `cls_mask` and
`multimodal_block` open_clip.
"""

from __future__ import annotations

from dataclasses import dataclass

from multicoca.modality import MAX_LAYERS, MAX_SIZE


@dataclass(frozen=True)
class ModelConfig:
    """The core's sizes.

    Attributes:
        width: size of the core's vectors.
        num_heads: attention heads of the decoder.
        mlp_width: hidden size of the decoder's MLPs.
        unimodal_layers: layers of the text-only half.
        multimodal_layers: layers of the half that sees the context.
        embedding_width: size of the contrastive space.
        pooler: cascade (the paper's), parallel, shared or none.
        num_queries: queries of the pooler, for every pooler but `none`; of a shared one the first is contrastive.
        pooler_heads: attention heads of the poolers; None takes `num_heads`.
        source_width: size of the tokens that the poolers read; None takes `width`.
        adapters: "all" maps every encoder's tokens to `source_width`, "where_needed" leaves those that have it as
            they are.
        caption_heads: "separate" (one for each modality) or "shared".
        contrastive: "softmax" over all pairs of a batch (the paper's), or "sigmoid", each pair by itself (SigLIP, arXiv
            2303.15343), which gives each modality a bias of the logits.
        context_length: the longest text, in tokens with BOS and EOS.
        cls_mask: what CLS sees: "exact", every real token and itself; "open_clip", every real token and one of
            padding but not itself, except when the text fills the whole context; CLS has a position then.
        multimodal_block: "paper", one MLP in each layer; "open_clip", one more behind the self-attention, and a norm
            of the context in each layer.
    """

    width: int = 768
    num_heads: int = 12
    mlp_width: int = 3072
    unimodal_layers: int = 12
    multimodal_layers: int = 12
    embedding_width: int = 768
    pooler: str = "cascade"
    num_queries: int = 256
    pooler_heads: int | None = None
    source_width: int | None = None
    adapters: str = "all"
    caption_heads: str = "separate"
    contrastive: str = "softmax"
    context_length: int = 64
    cls_mask: str = "exact"
    multimodal_block: str = "paper"

    def __post_init__(self) -> None:
        sizes = ("width", "num_heads", "mlp_width", "multimodal_layers", "embedding_width", "num_queries")
        sizes += ("pooler_heads", "source_width")
        least = dict.fromkeys(sizes, 1) | {"unimodal_layers": 0, "context_length": 3}  # BOS, a word and EOS
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"model.{name} is {value}; expected at least {smallest}")
            most = MAX_LAYERS if name.endswith("_layers") else MAX_SIZE
            if value is not None and value > most:
                raise ValueError(f"model.{name} is {value}; expected at most {most:,}")
        for name, size, heads in (
            ("width", self.width, self.num_heads),
            ("source_width", self.source_width or self.width, self.pooler_heads or self.num_heads),
        ):
            if size % heads:
                raise ValueError(f"model.{name} is {size}, which {heads} heads cannot share equally")
        choices = {
            "pooler": ("cascade", "parallel", "shared", "none"),
            "adapters": ("all", "where_needed"),
            "caption_heads": ("separate", "shared"),
            "contrastive": ("softmax", "sigmoid"),
            "cls_mask": ("exact", "open_clip"),
            "multimodal_block": ("paper", "open_clip"),
        }
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"model.{name} is '{getattr(self, name)}'; choose one of {', '.join(valid)}")
        if self.pooler == "none" and self.source_width not in (None, self.width):
            raise ValueError(
                f"model.source_width is {self.source_width} and model.width {self.width}; with model.pooler=none the "
                "decoder reads the tokens themselves, so both must be equal: leave source_width out"
            )
