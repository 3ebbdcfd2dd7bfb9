import pytest
import torch
from multicoca_video import VideoEncoder
from multicoca_video.encoder import sine_cosine
from torch import nn

from multicoca.modality import Encoder
from multicoca.tokens import Tokens

WIDTH = 6


class PatchEncoder(nn.Module):
    """Four patches of a 4 x 4 picture; optionally the last token is masked where the picture is dark."""

    def __init__(self, masks=False):
        super().__init__()
        self.width = WIDTH
        self.blocks = nn.ModuleList([nn.Conv2d(3, WIDTH, 2, 2)])
        self.masks = masks

    def forward(self, inputs):
        pixels = inputs["pixels"]
        values = self.blocks[0](pixels).flatten(2).transpose(1, 2)
        mask = None
        if self.masks:
            mask = torch.ones(values.shape[:2], dtype=torch.bool)
            mask[:, -1] = pixels.mean(dim=(1, 2, 3)) > 0
        return Tokens(values, mask, (2, 2))


def clips(batch=2, num_frames=5):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(batch, num_frames, 3, 4, 4, generator=generator)
    return {"frames": frames, "mask": torch.ones(batch, num_frames, dtype=torch.bool)}


def test_tokens_are_those_of_each_frame_plus_its_position():
    encoder = VideoEncoder(PatchEncoder(), num_frames=5)
    inputs = clips()
    tokens = encoder(inputs)
    assert isinstance(encoder, Encoder)
    assert tokens.grid == (5, 2, 2)
    assert tokens.mask.all()
    values = tokens.values.view(2, 5, 4, WIDTH)
    for frame in range(5):
        alone = encoder.frame_encoder({"pixels": inputs["frames"][:, frame]}).values
        torch.testing.assert_close(values[:, frame], alone + sine_cosine(5, WIDTH)[frame])


@pytest.mark.parametrize(("pooling", "matters"), [("tokens", True), ("mean", False)])
def test_order_of_frames_matters_for_tokens_and_not_for_the_mean(pooling, matters):
    encoder = VideoEncoder(PatchEncoder(), num_frames=5, pooling=pooling)
    inputs = clips()
    backwards = {**inputs, "frames": inputs["frames"].flip(1)}
    one, other = encoder(inputs).values.sum(1), encoder(backwards).values.sum(1)
    torch.testing.assert_close(one, other)  # a sum over tokens never sees the order by itself
    one, other = (encoder(each).values.square().sum(1) for each in (inputs, backwards))
    assert torch.allclose(one, other, atol=1e-5) != matters


@pytest.mark.parametrize("pooling", ["tokens", "mean"])
def test_without_a_mask_all_frames_are_real_and_the_tokens_have_none(pooling):
    encoder = VideoEncoder(PatchEncoder(), num_frames=5, pooling=pooling, mixing_blocks=1, mixing_heads=2)
    inputs = clips()
    masked, free = encoder(inputs), encoder({"frames": inputs["frames"]})
    assert free.mask is None
    assert free.grid == masked.grid
    torch.testing.assert_close(free.values, masked.values)
    partly = VideoEncoder(PatchEncoder(masks=True), num_frames=5, pooling=pooling)
    assert torch.equal(partly({"frames": inputs["frames"]}).mask, partly(inputs).mask)


def test_mean_is_the_mean_over_real_frames():
    encoder = VideoEncoder(PatchEncoder(), num_frames=5, pooling="mean")
    inputs = clips()
    inputs["mask"][1, 3:] = False
    tokens = encoder(inputs)
    assert tokens.grid == (2, 2)
    for clip, count in ((0, 5), (1, 3)):
        alone = encoder.frame_encoder({"pixels": inputs["frames"][clip, :count]}).values
        torch.testing.assert_close(tokens.values[clip], alone.mean(0))


@pytest.mark.parametrize("pooling", ["tokens", "mean"])
@pytest.mark.parametrize("junk", [7.0, float("nan")])
def test_padding_frames_changes_nothing(pooling, junk):
    encoder = VideoEncoder(PatchEncoder(), num_frames=4, pooling=pooling)
    inputs = clips(num_frames=3)
    plain = encoder(inputs)
    padded = encoder(
        {
            "frames": torch.cat([inputs["frames"], torch.full((2, 2, 3, 4, 4), junk)], dim=1),
            "mask": torch.tensor([[True] * 3 + [False] * 2] * 2),
        }
    )
    values = padded.values[padded.mask].view_as(plain.values)
    torch.testing.assert_close(values, plain.values)
    assert torch.isfinite(padded.values).all()


@pytest.mark.parametrize("pooling", ["tokens", "mean"])
def test_masks_of_the_frame_encoder_are_respected(pooling):
    encoder = VideoEncoder(PatchEncoder(masks=True), num_frames=2, pooling=pooling)
    inputs = clips(batch=1, num_frames=2)
    inputs["frames"][:, 0] = inputs["frames"][:, 0].abs()
    inputs["frames"][:, 1] = -inputs["frames"][:, 1].abs()  # dark: its last token is masked
    tokens = encoder(inputs)
    if pooling == "tokens":
        assert tokens.mask.tolist() == [[True] * 7 + [False]]
    else:
        first = encoder.frame_encoder({"pixels": inputs["frames"][:, 0]}).values
        assert tokens.mask.all()
        torch.testing.assert_close(tokens.values[:, -1], first[:, -1])


@pytest.mark.parametrize("num_frames", [1, 3, 8, 13])
def test_clips_of_another_length_stretch_the_positions(num_frames):
    encoder = VideoEncoder(PatchEncoder(), num_frames=8)
    nn.init.zeros_(encoder.frame_encoder.blocks[0].weight)
    nn.init.zeros_(encoder.frame_encoder.blocks[0].bias)
    tokens = encoder(clips(batch=1, num_frames=num_frames))
    assert tokens.grid == (num_frames, 2, 2)
    learned = encoder.pooling.position.T[None]
    expected = nn.functional.interpolate(learned, num_frames, mode="linear", align_corners=False)[0].T
    torch.testing.assert_close(tokens.values.view(num_frames, 4, WIDTH)[:, 0], expected)


@pytest.mark.parametrize("pooling", ["tokens", "mean"])
def test_gradient_reaches_every_parameter_and_each_is_stored_once(pooling):
    encoder = VideoEncoder(PatchEncoder(), num_frames=5, pooling=pooling)
    encoder(clips()).values.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    names = [name for name in encoder.state_dict() if "blocks" in name]
    assert names == ["frame_encoder.blocks.0.weight", "frame_encoder.blocks.0.bias"]
    assert encoder.blocks is encoder.frame_encoder.blocks


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="mean.*tokens"):
        VideoEncoder(PatchEncoder(), pooling="max")
    with pytest.raises(ValueError, match="num_frames"):
        VideoEncoder(PatchEncoder(), num_frames=0)
