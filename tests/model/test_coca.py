"""Properties of the core: padding, masks, causality, poolers, initialisation."""

import math

import pytest
import torch
from conftest import VOCAB, VectorEncoder, small_model

from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.model.losses import contrastive_loss
from multicoca.model.pooler import POOLERS
from multicoca.nn.attention import attend, attend_by_products
from multicoca.nn.init import TABLE, initialize, initializer_of


def test_padding_of_a_text_changes_neither_embedding_nor_logits(model, pairs):
    inputs, ids, lengths = pairs
    before = model("a", inputs, ids, lengths)
    padded = torch.cat([ids, torch.full((5, 3), 5)], dim=1)
    after = model("a", inputs, padded, lengths)
    torch.testing.assert_close(before.text, after.text, rtol=1e-5, atol=1e-6)
    logits = [model.caption_logits("a", inputs, each, lengths)[0] for each in (ids, padded)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(before.caption_loss, after.caption_loss, rtol=1e-5, atol=1e-6)


def test_what_stands_in_padding_changes_nothing(model, pairs):
    inputs, ids, lengths = pairs
    other = ids.clone()
    other[torch.arange(9) >= lengths[:, None]] = 11
    assert not torch.equal(ids, other)
    before, after = model("a", inputs, ids, lengths), model("a", inputs, other, lengths)
    torch.testing.assert_close(before.text, after.text, rtol=0, atol=0)
    logits = [model.caption_logits("a", inputs, each, lengths)[0] for each in (ids, other)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_cls_sees_every_real_token(model):
    ids, lengths = torch.tensor([[3, 4, 5, 6]]), torch.tensor([4])
    reference = model.encode_text(ids, lengths)
    for position in range(4):
        changed = ids.clone()
        changed[0, position] += 7
        assert (model.encode_text(changed, lengths) - reference).abs().max() > 1e-4


def test_no_logit_depends_on_a_later_token(model, pairs):
    inputs, ids, _ = pairs
    lengths = torch.full((5,), 9)
    reference = model.caption_logits("a", inputs, ids, lengths)[0].unflatten(0, (5, 8))
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    logits = model.caption_logits("a", inputs, changed, lengths)[0].unflatten(0, (5, 8))
    torch.testing.assert_close(logits[:, :5], reference[:, :5], rtol=0, atol=0)
    assert (logits[:, 5:] - reference[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-4


@pytest.mark.parametrize("pooler", POOLERS)
def test_garbage_in_masked_source_tokens_changes_nothing(pooler, pairs):
    model = small_model(pooler=pooler).eval()
    inputs, ids, lengths = pairs
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5, 6])[:, None]
    clean = model("a", {"x": inputs["x"], "mask": mask}, ids, lengths)
    dirty = model("a", {"x": inputs["x"].masked_fill(~mask[..., None], 1e3), "mask": mask}, ids, lengths)
    torch.testing.assert_close(clean.source, dirty.source, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(clean.caption_loss, dirty.caption_loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooler", POOLERS)
def test_more_source_tokens_than_in_training_are_taken(pooler):
    model = small_model(pooler=pooler).eval()
    context, embedding = model.encode("a", {"x": torch.randn(2, 50, 6)})
    expected = {"cascade": 4, "parallel": 4, "shared": 3, "none": 50}[pooler]
    assert context.values.shape == (2, expected, 32)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))


def test_batch_composition_changes_nothing(model, pairs):
    inputs, ids, lengths = pairs
    together = model("a", inputs, ids, lengths)
    alone = model("a", {"x": inputs["x"][1:2]}, ids[1:2, :4], lengths[1:2])
    torch.testing.assert_close(alone.source[0], together.source[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.text[0], together.text[1], rtol=1e-5, atol=1e-6)


def test_only_tokens_with_a_next_one_are_targets(model, pairs):
    inputs, ids, lengths = pairs
    logits, targets = model.caption_logits("a", inputs, ids, lengths)
    expected = torch.cat([row[1:length] for row, length in zip(ids, lengths, strict=True)])
    assert targets.tolist() == expected.tolist()
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(model("a", inputs, ids, lengths).caption_loss, loss, rtol=1e-5, atol=1e-5)


def test_every_parameter_gets_a_gradient(pairs):
    model = small_model(pooler="cascade")
    inputs, ids, lengths = pairs
    for modality in ("a", "b"):
        outputs = model(modality, inputs, ids, lengths)
        similarity = (outputs.source @ outputs.text.T) * outputs.logit_scale
        loss = similarity.logsumexp(1).sum() - similarity.trace()
        (loss + outputs.caption_loss).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert without == []


def test_modalities_share_all_but_their_own_parts():
    names = {name.split(".")[0] for name, _ in small_model().named_parameters()}
    assert names == {"encoders", "poolers", "text", "text_projection", "heads"}
    shared = small_model(caption_heads="shared")
    assert shared.heads["a"].caption_head is shared.heads["b"].caption_head


def test_a_sigmoid_model_starts_with_the_bias_of_siglip_and_has_no_limit_of_its_scale(pairs):
    model = small_model(contrastive="sigmoid")
    outputs = model("a", *pairs, captions=False)
    assert outputs.logit_bias.item() == -10
    assert outputs.caption_loss is None
    for head in (model.heads["a"], small_model().heads["a"]):
        head.log_scale.data.fill_(6.0)
        assert (head.logit_scale().item() > 100) == (head.logit_bias is not None)


def test_every_parameter_follows_the_table_of_initialisation():
    config = ModelConfig(width=64, num_heads=4, mlp_width=128, num_queries=16, embedding_width=48, context_length=40)
    model = CoCa(config, {"a": VectorEncoder()}, 500, torch.Generator().manual_seed(0))
    fan_in_scales = {"out.weight": 1 / math.sqrt(48), "down.weight": 1 / math.sqrt(48), "caption_head.weight": 0.25}
    for name, parameter in model.named_parameters():
        if name.startswith("encoders."):
            continue
        initializer_of(name)
        assert parameter.isfinite().all(), name
        if name.endswith("log_scale"):
            assert torch.equal(parameter, torch.full((1,), math.log(1 / 0.07)))
        elif "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.dim() == 2 and ("embedding" not in name and "queries" not in name):
            in_residual = name.startswith("text.")
            scale = next(
                (s for end, s in fan_in_scales.items() if name.endswith(end) and (in_residual or s == 0.25)), 1
            )
            expected = scale / math.sqrt(parameter.shape[1])
            assert abs(float(parameter.std()) / expected - 1) < 0.1, name
    assert abs(float(model.text.token_embedding.weight.std()) / 0.02 - 1) < 0.05


def test_a_parameter_without_a_rule_is_an_error():
    assert TABLE[-1][0] == "*.weight"
    with pytest.raises(KeyError, match="mystery"):
        initializer_of("mystery")


def test_the_first_captioning_loss_is_the_logarithm_of_the_vocabulary():
    ids = torch.randint(0, VOCAB, (200, 12), generator=torch.Generator().manual_seed(0))
    outputs = small_model()("a", {"x": torch.randn(200, 3, 6)}, ids, torch.full((200,), 12))
    loss = outputs.caption_loss / (200 * 11)
    assert abs(float(loss) / math.log(VOCAB) - 1) < 0.02


def test_the_first_contrastive_loss_is_that_of_a_guess(pairs):
    generator = torch.Generator().manual_seed(0)
    ids, sources = torch.randint(0, VOCAB, (64, 12), generator=generator), torch.randn(64, 3, 6, generator=generator)
    model = small_model(width=256, embedding_width=256, mlp_width=512)
    outputs = model("a", {"x": sources}, ids, torch.full((64,), 12))
    loss = contrastive_loss(outputs.source, outputs.text, outputs.logit_scale)
    assert abs(float(loss) / (2 * math.log(64)) - 1) < 0.05


def test_nothing_is_left_as_the_memory_happened_to_be():
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        for pooler, form in ((pooler, form) for pooler in POOLERS for form in ("paper", "open_clip")):
            changes = {"multimodal_block": form, "cls_mask": "exact" if form == "paper" else form}
            model = small_model(pooler=pooler, **changes)
            assert all(value.isfinite().all() for value in model.state_dict().values())
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_core_built_without_memory_is_initialised_later_in_the_same_way():
    built = small_model()
    with torch.device("meta"):
        empty = CoCa(built.config, {"a": VectorEncoder(), "b": VectorEncoder()}, VOCAB)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty = empty.to_empty(device="cpu")
    empty.encoders.load_state_dict(built.encoders.state_dict())
    initialize(empty, 4, generator=torch.Generator().manual_seed(0))
    for (name, value), expected in zip(empty.named_parameters(), built.parameters(), strict=True):
        assert torch.equal(value, expected), name


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True)])
def test_attention_by_products_equals_the_fused_kernel(causal, masked):
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)[:, None, None] if masked else None
    fused, plain = attend(q, k, v, causal, mask), attend_by_products(q, k, v, causal, mask)
    torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(fused)
    gradients = [torch.autograd.grad((out * weights).sum(), (q, k, v), retain_graph=True) for out in (fused, plain)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_bf16_on_a_cpu_takes_the_products_and_stays_close():
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    exact = attend(q, k, v, causal=True)
    rounded = attend(*(t.bfloat16() for t in (q, k, v)), causal=True)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.03)


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match=r"model\.pooler is 'mean'"):
        small_model(pooler="mean")
    with pytest.raises(ValueError, match="caption_heads"):
        small_model(caption_heads="tied")
    with pytest.raises(ValueError, match="heads"):
        small_model(num_heads=5)
    with pytest.raises(ValueError, match="leave source_width out"):
        small_model(pooler="none", source_width=24)


def test_adapters_stand_where_they_are_needed_only():
    model = small_model(source_width=24, adapters="where_needed")
    assert isinstance(model.heads["a"].adapter, torch.nn.Identity)
    other = small_model(source_width=20, adapters="where_needed").heads["a"].adapter
    assert (other.in_features, other.out_features) == (24, 20)
    assert small_model(source_width=24).heads["a"].adapter.in_features == 24


def test_open_clips_cls_sees_one_padding_and_not_itself():
    model = small_model(cls_mask="open_clip").eval()
    ids = torch.randint(3, VOCAB, (1, 6))
    _, _, sees = model.text._join_cls_as_open_clip(ids, torch.tensor([4]))
    assert sees[0].tolist() == [True] * 5 + [False] * 3
    _, _, sees = model.text._join_cls_as_open_clip(torch.ones(1, 12, dtype=torch.long), torch.tensor([12]))
    assert sees.shape == (1, 13)
    assert sees.all()
    with torch.no_grad():
        plain = model.encode_text(ids, torch.tensor([4]))
        longer = model.encode_text(torch.cat([ids, ids], dim=1), torch.tensor([4]))
    torch.testing.assert_close(plain, longer, rtol=1e-5, atol=1e-6)


def test_a_text_longer_than_the_context_is_an_error(model, pairs):
    inputs, _, _ = pairs
    with pytest.raises(ValueError, match="context length is 12"):
        model("a", inputs, torch.ones(5, 13, dtype=torch.long), torch.full((5,), 13))
