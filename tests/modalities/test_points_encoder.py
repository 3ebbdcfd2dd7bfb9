"""Grouping against naive references and open3d; the encoder's invariances, gradients and state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from multicoca_points import PointEncoder, farthest_point_sample, grouping, nearest_neighbors

SMALL = dict(width=32, depth=2, num_heads=4, num_groups=12, group_size=8, group_widths=(8, 16, 16, 24))


def random_points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed))


def small_encoder(**settings: object) -> PointEncoder:
    torch.manual_seed(0)
    return PointEncoder(**{**SMALL, **settings}).eval()


def inputs_of(xyz: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    rgb = torch.rand(xyz.shape, generator=torch.Generator().manual_seed(7))
    return {"xyz": xyz, "rgb": rgb} | ({} if mask is None else {"mask": mask})


def naive_farthest(xyz: torch.Tensor, num: int) -> list[int]:
    chosen = [int(xyz.sum(dim=1).argmax())]
    while len(chosen) < num:
        to_chosen = torch.stack([(xyz - xyz[i]).square().sum(dim=1) for i in chosen])
        chosen.append(int(to_chosen.amin(dim=0).argmax()))
    return chosen


@pytest.mark.parametrize("batch", [1, 3, 200])  # 200 clouds go through the loop in several pieces
def test_farthest_points_equal_the_naive_loop(batch):
    xyz = random_points(batch, 150)
    indices, new = farthest_point_sample(xyz, 20)
    assert new.all()
    for cloud in {0, batch // 2, batch - 1}:
        assert indices[cloud].tolist() == naive_farthest(xyz[cloud], 20)


def test_farthest_points_equal_open3d(open3d):
    xyz = random_points(1, 400)
    indices, _ = farthest_point_sample(xyz, 50)
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz[0].double().numpy()))
    expected = np.asarray(cloud.farthest_point_down_sample(50, start_index=int(indices[0, 0])).points)
    mine = xyz[0, indices[0]].double().numpy()
    assert {tuple(row) for row in mine.round(5)} == {tuple(row) for row in expected.round(5)}


@pytest.mark.parametrize("filling", [0.0, 1e6, float("nan"), float("inf")])
def test_padding_is_never_chosen(filling):
    xyz = random_points(2, 40)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, 10:], mask[1, ::2] = False, False
    padded = xyz.masked_fill(~mask[..., None], filling)
    indices, new = farthest_point_sample(padded, 30, mask)
    assert mask.gather(1, indices).all()
    assert new.sum(dim=1).tolist() == [10, 20]
    for cloud in range(2):
        real = xyz[cloud, mask[cloud]]
        assert torch.equal(padded[cloud, indices[cloud, :10]], real[naive_farthest(real, 10)])
    centers = padded.gather(1, indices[..., None].expand(-1, -1, 3))
    members = nearest_neighbors(centers, padded, 15, mask)
    assert mask.gather(1, members.flatten(1)).all()


def test_coinciding_points_give_no_new_groups():
    xyz = random_points(1, 5).repeat(1, 6, 1)
    indices, new = farthest_point_sample(xyz, 8)
    assert new.tolist() == [[True] * 5 + [False] * 3]
    assert len({tuple(row) for row in xyz[0, indices[0, :5]].tolist()}) == 5


def test_neighbors_equal_sorted_distances():
    xyz, centers = random_points(2, 60), random_points(2, 7, seed=1)
    distances = (centers[:, :, None] - xyz[:, None]).square().sum(dim=-1)
    assert torch.equal(nearest_neighbors(centers, xyz, 9), distances.argsort(dim=-1)[..., :9])


def test_neighbors_of_small_clouds_repeat_the_nearest():
    xyz = random_points(1, 3)
    members = nearest_neighbors(xyz[:, :1], xyz, 6)
    assert members.shape == (1, 1, 6)
    assert sorted(members[0, 0, :3].tolist()) == [0, 1, 2]
    assert members[0, 0, 3:].tolist() == [0, 0, 0]


def test_neighbors_are_exact_far_from_the_origin():
    near = random_points(1, 200) * 0.5
    assert torch.equal(
        nearest_neighbors(near[:, :9] + 1024, near + 1024, 4), nearest_neighbors_in_double(near + 1024, 9, 4)
    )


def lattice(points: int) -> torch.Tensor:
    """Places on a coarse lattice, several points at each: most distances occur many times."""
    return torch.randint(0, 4, (3, points, 3), generator=torch.Generator().manual_seed(4)).float()


@pytest.mark.parametrize("tile", [1, 100, 700, 3000, 12000, 1 << 20])
def test_neighbors_do_not_depend_on_the_tile(tile, monkeypatch):
    xyz = lattice(150)
    mask = torch.rand(3, 150, generator=torch.Generator().manual_seed(5)) < 0.7
    expected = nearest_neighbors(xyz[:, :23], xyz, 20, mask)
    monkeypatch.setattr(grouping, "_CPU_TILE", tile)
    assert torch.equal(nearest_neighbors(xyz[:, :23], xyz, 20, mask), expected)


def test_of_equally_near_points_the_first_are_neighbors_whatever_the_padding():
    xyz, centers = lattice(150), lattice(9) + 0.5
    expected = (centers[:, :, None] - xyz[:, None]).square().sum(dim=-1).argsort(dim=-1, stable=True)[..., :20]
    assert torch.equal(nearest_neighbors(centers, xyz, 20), expected)
    padded = torch.cat([xyz, torch.zeros(3, 2000, 3)], dim=1)  # so many that topk on a CPU sorts in another way
    mask = torch.arange(2150).expand(3, -1) < 150
    assert torch.equal(nearest_neighbors(centers, padded, 20, mask), expected)


def test_both_ways_of_selecting_agree():
    squared = torch.rand(5, 300, generator=torch.Generator().manual_seed(6)).round(decimals=2)  # with ties
    keys = grouping._smallest_of_floats(squared, 300)  # all, as which of equal ones it takes is left to the device
    assert torch.equal(grouping._smallest_of_keys(squared, 300), keys)
    assert torch.equal(keys & 0xFFFFFFFF, squared.argsort(dim=-1, stable=True))


@pytest.mark.parametrize("seed", range(5))
def test_distances_round_alike_at_every_place(seed):
    near, far = random_points(1, 1, seed=seed), random_points(1, 1, seed=seed + 10) * 30
    xyz = far.expand(-1, 1001, -1)  # one distance, computed in wide steps and in what they leave over
    for num in (1, 3, 8, 1001):
        squared = grouping._squared_distances(
            near.permute(2, 0, 1)[..., None], xyz[:, :num].permute(2, 0, 1)[:, :, None].contiguous()
        )
        exact = [np.float32(a) - np.float32(b) for a, b in zip(near[0, 0].numpy(), far[0, 0].numpy(), strict=True)]
        assert (squared == float(exact[0] * exact[0] + exact[1] * exact[1] + exact[2] * exact[2])).all()


def nearest_neighbors_in_double(xyz: torch.Tensor, num_centers: int, k: int) -> torch.Tensor:
    points = xyz.double()
    distances = (points[:, :num_centers, None] - points[:, None]).square().sum(dim=-1)
    return distances.argsort(dim=-1, stable=True)[..., :k]


def test_grouping_ignores_autocast():
    xyz = random_points(2, 100) + 50
    expected = farthest_point_sample(xyz, 16)[0], nearest_neighbors(xyz[:, :5], xyz, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(farthest_point_sample(xyz, 16)[0], expected[0])
        assert torch.equal(nearest_neighbors(xyz[:, :5], xyz, 8), expected[1])


def test_tokens_have_the_promised_form():
    encoder, xyz = small_encoder(), random_points(3, 50)
    tokens = encoder(inputs_of(xyz, torch.ones(3, 50, dtype=torch.bool)))
    assert tokens.values.shape == (3, 12, 32)
    assert tokens.mask.shape == (3, 12)
    assert tokens.mask.all()
    assert tokens.grid is None
    free = encoder(inputs_of(xyz))  # all points are real and apart, and there are enough of them
    assert free.mask is None
    torch.testing.assert_close(free.values, tokens.values)
    assert encoder(inputs_of(xyz[:, :11])).mask.sum(dim=1).tolist() == [11] * 3


@pytest.mark.parametrize("count", [4, 11, 30])
@pytest.mark.parametrize("filling", [0.0, 100.0, float("nan")])
def test_padding_never_changes_real_tokens(count, filling):
    encoder, inputs = small_encoder(), inputs_of(random_points(2, count))
    plain = encoder({**inputs, "mask": torch.ones(2, count, dtype=torch.bool)})
    padded = {key: torch.cat([value, torch.full((2, 25, 3), filling)], dim=1) for key, value in inputs.items()}
    padded["mask"] = torch.arange(count + 25).expand(2, -1) < count
    tokens = encoder(padded)
    assert torch.equal(tokens.mask, plain.mask)
    assert tokens.mask.sum(dim=1).tolist() == [min(count, 12)] * 2
    torch.testing.assert_close(tokens.values[tokens.mask], plain.values[plain.mask], atol=1e-6, rtol=1e-5)


def test_surplus_groups_change_nothing():
    inputs = inputs_of(random_points(2, 5), torch.ones(2, 5, dtype=torch.bool))
    exact = small_encoder(num_groups=5)(inputs)  # as many groups as points
    tokens = small_encoder()(inputs)
    assert exact.mask.all()
    torch.testing.assert_close(tokens.values[:, :5], exact.values, atol=1e-6, rtol=1e-5)


def test_only_positions_know_where_a_group_is():
    encoder, inputs = small_encoder(), inputs_of(random_points(2, 60))
    moved = {**inputs, "xyz": inputs["xyz"] + torch.tensor([3.0, -2.0, 1.0])}
    assert (encoder(moved).values - encoder(inputs).values).abs().max() > 0.1
    for parameter in encoder.position.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(encoder(moved).values, encoder(inputs).values, atol=1e-4, rtol=1e-4)


def test_offsets_are_scaled():
    inputs = inputs_of(random_points(2, 60))
    points = [small_encoder(offset_scale=scale)._group(inputs["xyz"], inputs["rgb"], None)[1] for scale in (1.0, 8.0)]
    torch.testing.assert_close(points[1][..., :3], 8 * points[0][..., :3])
    assert torch.equal(points[1][..., 3:], points[0][..., 3:])


def test_a_cloud_does_not_change_its_neighbors_in_the_batch():
    encoder, inputs = small_encoder(), inputs_of(random_points(3, 40))
    alone = encoder({key: value[1:2] for key, value in inputs.items()}).values
    torch.testing.assert_close(encoder(inputs).values[1:2], alone, atol=1e-6, rtol=1e-5)


def test_the_order_of_points_does_not_matter():
    encoder, inputs = small_encoder(), inputs_of(random_points(2, 80))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    shuffled = encoder({key: value[:, order] for key, value in inputs.items()}).values
    torch.testing.assert_close(shuffled, encoder(inputs).values, atol=1e-6, rtol=1e-5)


def test_place_shape_and_color_all_matter():
    encoder, inputs = small_encoder(), inputs_of(random_points(1, 80))
    values = encoder(inputs).values
    for key, changed in (("xyz", inputs["xyz"] + 0.3), ("xyz", inputs["xyz"] * 1.3), ("rgb", 1 - inputs["rgb"])):
        assert (encoder({**inputs, key: changed}).values - values).abs().mean() > 1e-2


def test_one_point_makes_one_token():
    encoder = small_encoder()
    tokens = encoder(inputs_of(random_points(2, 1)))
    assert tokens.mask.sum(dim=1).tolist() == [1, 1]
    assert tokens.values.isfinite().all()
    copies = {key: value.expand(-1, 9, -1) for key, value in inputs_of(random_points(2, 1)).items()}
    torch.testing.assert_close(encoder(copies).values[:, 0], tokens.values[:, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("frequencies", [0, 3])
def test_a_gradient_reaches_every_parameter(frequencies):
    encoder = small_encoder(position_frequencies=frequencies).train()
    values = encoder(inputs_of(random_points(3, 60))).values
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    without = [
        name for name, parameter in encoder.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_initialisation_is_the_documented_one():
    encoder = PointEncoder(width=192, depth=2, num_heads=3, group_widths=(64, 96, 128, 160))
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 if name.startswith("blocks.") else parameter.shape[1] ** -0.5
            assert parameter.abs().max() <= 2 * std + 1e-6, name
            assert parameter.std().item() == pytest.approx(0.88 * std, rel=0.12), name  # 0.88: cut at two sigma


def test_the_default_is_uni3d_small():
    with torch.device("meta"):  # sizes only
        encoder = PointEncoder()
    assert (encoder.width, len(encoder.blocks), encoder.num_groups, encoder.group_size) == (384, 12, 512, 64)
    assert sum(parameter.numel() for parameter in encoder.blocks.parameters()) == 12 * 1_774_464  # ViT-S/12's blocks


def test_state_dict_round_trip():
    first, second = small_encoder(), PointEncoder(**SMALL).eval()
    inputs = inputs_of(random_points(2, 40))
    assert not torch.equal(first(inputs).values, second(inputs).values)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(inputs).values, second(inputs).values)


def test_patch_dropout_keeps_real_tokens_only_in_training():
    encoder = small_encoder(patch_dropout=0.5)
    mask = torch.arange(30).expand(2, -1) < torch.tensor([[6], [30]])
    inputs = inputs_of(random_points(2, 30), mask)
    assert encoder(inputs).values.shape == (2, 12, 32)
    encoder.train()
    torch.manual_seed(0)
    first, second = encoder(inputs), encoder(inputs)
    assert first.values.shape == (2, 6, 32)
    assert first.mask.all()  # the first cloud has six real groups of twelve: only these are kept
    assert not torch.equal(first.values[1], second.values[1])


def test_bfloat16_stays_close():
    encoder, inputs = small_encoder(), inputs_of(random_points(2, 50))
    exact = encoder(inputs).values
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(inputs).values.float()
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=-1).min() > 0.999


def test_one_training_step_lowers_the_loss():
    encoder, inputs = small_encoder().train(), inputs_of(random_points(4, 50))
    target = torch.randn(4, 32, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        loss = (encoder(inputs).values.mean(dim=1) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "settings",
    [{"width": 100}, {"group_widths": (8, 8)}, {"num_groups": 0}, {"patch_dropout": 1.0}, {"position_frequencies": -1}],
)
def test_wrong_sizes_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PointEncoder(**{**SMALL, "num_heads": 3 if "width" in settings else 4, **settings})
