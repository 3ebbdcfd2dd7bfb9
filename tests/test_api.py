"""The Python API: whatever a user holds gives what its file gives, in every precision, and errors say what to do."""

import io
import json
import os
import pickle
import subprocess
import sys
import threading
import tomllib
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from multicoca_points.ply import write_ply
from multicoca_signal import SignalProcessor
from PIL import Image

import multicoca
from multicoca import api, inputs
from multicoca.api import load
from multicoca.cli.compose import compose_config
from multicoca.data.sample import Problem
from multicoca.data.shapes import draw_scene
from multicoca.modality import UnreadableFileError
from multicoca.model.generate import DecodingConfig
from multicoca.runs.model_folder import build_bundle
from multicoca.runs.save import save
from multicoca.text.tokenizer import TextTokenizer

ROOT = Path(__file__).parent.parent
TEXTS = ["a small red cube", "a blue ball on the left", "a green cone behind a ring"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a small model of three modalities, untrained, with weights that tell inputs apart."""
    target = tmp_path_factory.mktemp("model")
    config = compose_config("train_shapes", ["modality=[image,video,points]"])
    bundle = build_bundle(config.spec, TextTokenizer.learn(TEXTS * 3, 320, config.model.context_length))
    save(target, bundle, config, "# a model")
    return target


@pytest.fixture(scope="module")
def model(folder) -> api.MultiCoCa:
    return load(folder, "cpu")


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> dict[str, Path]:
    """A file of each modality, a second picture, and a broken one."""
    target = tmp_path_factory.mktemp("files")
    for number, (name, processor) in enumerate(model.bundle.processors.items()):
        path = target / f"{name}{processor.scene_suffix}"
        path.write_bytes(processor.render(draw_scene(number, "train", 0)))
    picture().save(target / "picture.png")
    Image.fromarray(picture_array(1)).save(target / "other.png")
    (target / "broken.jpg").write_bytes(b"not a picture")
    return {path.stem: path for path in target.iterdir()}


def picture_array(seed: int = 0) -> np.ndarray:
    """Blocks of random colours, of a size that is resized and cropped."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return blocks.repeat(10, axis=0).repeat(10, axis=1)


def picture() -> Image.Image:
    return Image.fromarray(picture_array())


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


# 1. whatever a user holds


def test_different_items_have_different_embeddings(model, files):
    """What makes the comparisons of this file tell something."""
    found = model.embed([files[name] for name in ("picture", "other", "image", "video", "points")])
    similarities = found @ found.T - 2 * torch.eye(5)
    assert similarities.max() < 1 - 1e-4


def test_every_form_of_a_picture_gives_the_same_embedding(model, files):
    path, array = files["picture"], picture_array()
    data = path.read_bytes()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    with path.open("rb") as opened, path.open("rb") as unbuffered, Image.open(path) as lazy:
        items = [
            path, str(path), path.as_uri(), data, bytearray(data), memoryview(data), io.BytesIO(data), opened,
            unbuffered.raw, lazy, picture(), array, array / 255, (array / 255).astype(np.float32), tensor,
            tensor / 255, tensor.permute(1, 2, 0), tensor.numpy(),
        ]  # fmt: skip
        found = model.embed(items, batch_size=4)
    expected = model.embed(path)
    assert found.shape == (len(items), expected.shape[1])
    same(found, expected.expand_as(found))


def test_every_form_of_a_cloud_gives_the_same_embedding(model, tmp_path):
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(700, 3)).astype(np.float32) * 0.3
    rgb = rng.integers(0, 256, (700, 3), dtype=np.uint8)
    path = tmp_path / "cloud.ply"
    path.write_bytes(write_ply(xyz, rgb / 255))
    joined = np.concatenate([xyz, rgb / np.float32(255)], axis=1)
    np.save(tmp_path / "cloud.npy", joined)
    np.savez(tmp_path / "cloud.npz", points=xyz, colors=rgb)
    items = [
        path.read_bytes(), io.BytesIO(path.read_bytes()), tmp_path / "cloud.npy", tmp_path / "cloud.npz",
        (tmp_path / "cloud.npy").read_bytes(), (tmp_path / "cloud.npz").read_bytes(), joined, torch.from_numpy(joined),
        {"points": xyz, "colors": rgb}, {"xyz": torch.from_numpy(xyz), "rgb": torch.from_numpy(rgb)},
    ]  # fmt: skip
    found = model.embed(items)
    same(found, model.embed(path).expand_as(found))
    plain = tmp_path / "plain.npy"
    np.save(plain, xyz)
    found = model.embed([xyz, torch.from_numpy(xyz), {"points": xyz}, {"points": xyz, "colors": None}])
    same(found, model.embed(plain).expand_as(found))
    assert (found[:1] - model.embed(path)).abs().max() > 1e-4


def test_every_form_of_a_clip_gives_the_same_embedding(model, files):
    path = files["video"]
    clip = model.bundle.processors["video"].decode(path)
    frames = clip.frames(range(clip.num_frames))
    items = [path.read_bytes(), io.BytesIO(path.read_bytes()), frames, frames / 255, torch.from_numpy(frames),
             {"frames": frames, "fps": 8}]  # fmt: skip
    found = model.embed(items)
    same(found, model.embed(path).expand_as(found))
    turned = torch.from_numpy(frames).permute(0, 3, 1, 2)  # as likely a batch of pictures
    same(model.embed(turned, modality="video"), model.embed(path))
    with pytest.raises(UnreadableFileError, match=r"got torch.Tensor uint8 \[12, 3, 64, 64\]; expected"):
        model.embed(turned)


def test_collections_of_every_kind_keep_their_order(model, files):
    mixed = [files["points"], picture(), files["video"].read_bytes(), picture_array(1), str(files["image"])]
    alone = torch.cat([model.embed(item) for item in mixed])
    for items in (mixed, tuple(mixed), iter(mixed), (item for item in mixed)):
        same(model.embed(items, batch_size=2), alone)
    names = np.array([str(files["picture"]), str(files["other"])])
    same(model.embed(names), model.embed(list(names)))
    assert model.embed([]).shape == (0, alone.shape[1])
    assert model.score([], TEXTS).shape == (0, 3)
    assert model.caption([]) == []


def test_all_methods_take_all_items(model, files):
    items = [files["points"], picture(), files["video"].read_bytes()]
    found = model.describe(iter(items), max_length=6)
    assert [each.modality for each in found] == ["points", "image", "video"]
    same(torch.stack([each.embedding for each in found]), model.embed(items))
    assert model.caption(iter(items), max_length=6) == [each.captions[0].text for each in found]
    scores = model.score(iter(items), iter(TEXTS))
    same(scores[1:2], model.score(picture(), TEXTS))
    streamed = list(model.stream(iter(items), batch_size=1))
    assert [item for item, _ in streamed] == items
    same(torch.stack([embedding for _, embedding in streamed]), model.embed(items))
    assert [model.modality_of(item) for item in items] == ["points", "image", "video"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_pictures_need_no_suffix(kind, model, tmp_path):
    path = tmp_path / "download"
    picture().save(path, kind)
    named = path.with_name(f"picture.{kind.lower()}")
    named.write_bytes(path.read_bytes())
    assert model.modality_of(path) == "image"
    same(model.embed([path, path.read_bytes()]), model.embed([named, named]))


@pytest.mark.parametrize(("kind", "suffix"), [
    ("mp4", ".mp4"), ("mov", ".mov"), ("matroska", ".mkv"), ("webm", ".webm"), ("avi", ".avi"), ("mpegts", ".ts"),
    ("flv", ".flv"), ("ogg", ".ogv"), ("asf", ".wmv"), ("mpeg", ".mpg"),
])  # fmt: skip
def test_videos_need_no_suffix(kind, suffix, model, tmp_path):
    av = pytest.importorskip("av")
    codec = {"webm": "libvpx", "ogg": "libtheora", "mpeg": "mpeg1video", "flv": "flv"}.get(kind, "mpeg4")
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=kind) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for level in range(0, 250, 25):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except (av.codec.codec.UnknownCodecError, av.error.EncoderNotFoundError) as error:
        pytest.skip(str(error))
    path = tmp_path / "download"
    path.write_bytes(file.getvalue())
    assert model.bundle.processors["video"].suffix_of(file.getvalue()[:1024]) == suffix
    assert model.modality_of(path) == "video"
    assert model.embed(file.getvalue()).isfinite().all()


def test_what_comes_from_a_url_is_what_lies_there(model, files):
    system = fsspec.filesystem("memory")
    system.pipe({"/bucket/picture.png": files["picture"].read_bytes(), "/bucket/cloud": files["points"].read_bytes()})
    found = model.embed(["memory://bucket/picture.png", "memory://bucket/cloud"])
    same(found, model.embed([files["picture"], files["points"]]))
    with pytest.raises(UnreadableFileError, match="memory://bucket/nothing.png: it cannot be fetched: .*nothing.png"):
        model.embed("memory://bucket/nothing.png")
    with pytest.raises(UnreadableFileError, match="nowhere://x.png: it cannot be fetched: .*nowhere"):
        model.embed("nowhere://x.png")


def test_what_comes_over_http_is_what_lies_there(model, files):
    pytest.importorskip("aiohttp")
    handler = partial(SimpleHTTPRequestHandler, directory=str(files["picture"].parent))
    handler.func.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        same(model.embed(f"{url}/picture.png?size=large"), model.embed(files["picture"]))
        with pytest.raises(UnreadableFileError, match="it cannot be fetched"):
            model.embed(f"{url}/nothing.png")
        server.shutdown()


def test_a_file_url_may_be_quoted(model, files, tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(files["picture"].read_bytes())
    assert "%20" in path.as_uri()
    same(model.embed([path.as_uri(), f"file://{path}"]), model.embed([path, path]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros(5), r"got numpy.ndarray float64 \[5\]; expected a path.*; image: a PIL.*; points: an array"),
        (torch.zeros(2, 2, 2, 2, 2), r"got torch.Tensor float32 \[2, 2, 2, 2, 2\]; expected"),
        (np.full((32, 32, 3), 2.5), r"got float64 of shape \[32, 32, 3\] with values from 2.5 to 2.5; expected"),
        (np.full((32, 32, 3), -0.1), "expected floats in .0, 1."),
        (np.full((32, 32, 3), np.nan), "expected floats in .0, 1."),
        (np.zeros((32, 32, 3), np.int64), "got int64 of shape .*; expected uint8, uint16 or floats"),
        (np.zeros((3, 32, 3), np.uint8), "channels may be its first or its last dimension"),
        (np.full((4, 32, 32, 3), 7.0), "with values from 7 to 7; expected floats in .0, 1."),
        ({"frames": np.zeros((4, 32, 32, 3), np.uint8), "fps": 0}, "fps is 0; expected"),
        ({"points": np.zeros((9, 3)), "colour": np.zeros((9, 3)), "size": 3}, "keys 'points', 'colour', 'size'; "),
        ({"points": np.zeros((9, 3)), "colors": np.zeros((8, 3))}, "its colours have shape .8, 3.; they must"),
        ({"points": np.full((9, 3), np.nan)}, "none of its 9 points is finite"),
        ({"words": 3}, "got dict with the keys 'words'; expected"),
        (None, "got NoneType; expected a path"),
        (3, "got int; expected a path"),
        (b"", "item 0 .0 bytes.: it is empty"),
        (b"words and words", "its first bytes, b'words and words', show no format.*argument modality"),
        (io.StringIO("text"), "gave str, expected bytes; open it with 'rb'"),
    ],
)  # fmt: skip
def test_what_is_no_item_is_refused_with_what_was_got_and_expected(item, message, model):
    with pytest.raises(UnreadableFileError, match=message):
        model.embed([item])


def test_files_that_cannot_be_read_are_named(model, files, tmp_path):
    with pytest.raises(UnreadableFileError, match=r"broken.jpg: .*none of JPEG"):
        model.embed([files["picture"], files["broken"]])
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UnreadableFileError, match="notes.txt: nothing here reads '.txt' files.*it reads .avi, .bmp"):
        model.embed(tmp_path / "notes.txt")
    with pytest.raises(UnreadableFileError, match=r"nowhere.png: .*No such file"):
        model.embed(tmp_path / "nowhere.png")
    with pytest.raises(UnreadableFileError, match=r"nowhere: it cannot be read: No such file"):
        model.embed(tmp_path / "nowhere")


def test_a_modality_can_be_chosen(model, files, tmp_path):
    grey = np.random.default_rng(0).random((40, 3))
    assert model.modality_of(grey) == "points"
    narrow = tmp_path / "narrow.png"
    Image.fromarray((grey * 255).round().astype(np.uint8)).save(narrow)
    same(model.embed(grey, modality="image"), model.embed(narrow))
    animation = tmp_path / "animation.gif"
    frames = [Image.fromarray(picture_array(seed)) for seed in range(4)]
    frames[0].save(animation, save_all=True, append_images=frames[1:], duration=100)
    as_picture, as_video = (model.embed(animation, modality=name) for name in ("image", "video"))
    same(model.embed([animation, animation.read_bytes()]), as_picture.expand(2, -1))
    assert (as_picture - as_video).abs().max() > 1e-3
    with pytest.raises(ValueError, match="there is no modality 'sound'; this model has image, video, points"):
        model.embed(files["picture"], modality="sound")
    with pytest.raises(UnreadableFileError, match="broken|cannot be used|none of"):
        model.embed(files["points"], modality="image")


class _AlsoArrays(SignalProcessor):
    """Reads what points are, too."""

    objects = "an array [samples, 3]"

    def takes(self, value):
        return isinstance(value, np.ndarray) and value.ndim == 2

    def decode(self, file, suffix=""):
        return file[:, 0].astype(np.float32) if isinstance(file, np.ndarray) else super().decode(file, suffix)


def test_an_object_that_two_take_is_refused_until_one_is_chosen(model):
    processors = {**model.bundle.processors, "signal": _AlsoArrays()}
    cloud = np.random.default_rng(0).normal(size=(64, 3))
    (found,) = inputs.sample_batches(cloud, processors, 1)
    assert "got numpy.ndarray float64 [64, 3], which points and signal take; choose one" in str(found)
    (batch,) = inputs.sample_batches(cloud, processors, 1, "signal")
    assert batch.inputs["signal"].shape == (1, 64)


def test_a_processor_without_the_optional_promises_reads_paths_and_named_bytes(tmp_path):
    processors = {"signal": SignalProcessor()}
    path = tmp_path / "tone.npy"
    np.save(path, np.linspace(-1, 1, 100, dtype=np.float32))
    with path.open("rb") as opened:
        (batch,) = inputs.sample_batches([path, str(path), opened], processors, 3)
    assert torch.equal(batch.inputs["signal"][0], batch.inputs["signal"][2])
    (batch,) = inputs.sample_batches(path.read_bytes(), processors, 1, "signal")
    assert batch.inputs["signal"].shape == (1, 100)
    (unknown,) = inputs.sample_batches(path.read_bytes(), processors, 1)
    assert "show no format" in str(unknown)
    for modality in (None, "signal"):
        (refused,) = inputs.sample_batches(np.zeros(100, np.float32), processors, 1, modality)
        assert "expected a path, a URL, the bytes of a file or a binary file object" in str(refused)


def test_items_are_consumed_as_they_are_encoded(model, monkeypatch):
    """Of a generator no more is drawn than what is encoded and one batch of each modality."""
    drawn, encoded = [], []
    encode = type(model.bundle).encode

    def counted(bundle, modality, batch):
        encoded.append(len(next(iter(batch.values()))))
        return encode(bundle, modality, batch)

    monkeypatch.setattr(type(model.bundle), "encode", counted)

    def items():
        for number in range(40):
            assert len(drawn) - sum(encoded) <= 2 * 4
            drawn.append(number)
            yield picture_array(number) if number % 2 else np.random.default_rng(number).normal(size=(50, 3))

    assert model.embed(items(), batch_size=4).isfinite().all()
    assert sum(encoded) == len(drawn) == 40
    assert max(encoded) == 4
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.embed(picture(), batch_size=0)


# 2. errors


def test_skipped_items_leave_gaps_and_one_warning(model, files):
    items = [files["picture"], files["broken"], None, files["points"], *[b"nothing"] * 3]
    bad = [1, 2, 4, 5, 6]
    good = model.embed([files["picture"], files["points"]])
    with pytest.warns(UserWarning, match=r"5 of 7 items could not be read: .*broken.jpg: .*; item 2 \(NoneType\): "
                                         r".*; item 4 \(7 bytes\): .*; and 2 more") as caught:  # fmt: skip
        found = model.embed(items, on_error="skip")
    assert len(caught) == 1
    same(found[[0, 3]], good)
    assert found[bad].isnan().all()
    with pytest.warns(UserWarning, match="5 of 7"):
        scores = model.score(items, TEXTS, on_error="skip")
    same(scores[[0, 3]], model.score([files["picture"], files["points"]], TEXTS))
    assert scores[bad].isnan().all()
    for method in (model.caption, model.describe):
        with pytest.warns(UserWarning, match="5 of 7"):
            results = method(items, on_error="skip", max_length=5)
        assert [number for number, result in enumerate(results) if result is None] == bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed([files["picture"]], on_error="skip")
    with pytest.warns(UserWarning, match="1 of 1"):
        assert model.embed(files["broken"], on_error="skip").isnan().all()


def test_streams_name_what_they_cannot_read(model, files):
    found = list(model.stream([files["broken"], picture(), None]))
    assert [type(result) for _, result in found] == [Problem, Problem, torch.Tensor]
    assert found[0][1].file == str(files["broken"])
    assert found[1][1].file == "item 2 (NoneType)"


def test_other_words_for_on_error_are_refused(model, files):
    for call in (model.embed, model.caption, model.describe, partial(model.score, captions=TEXTS)):
        with pytest.raises(ValueError, match="on_error is 'ignore'; choose one of raise, skip"):
            call(files["picture"], on_error="ignore")


# 3. decoding


def test_decoding_is_set_by_keywords_or_by_a_configuration(model, files):
    beam = DecodingConfig("beam", num_beams=3, captions=2, max_length=7)
    expected = model.describe(files["picture"], decoding=beam)[0].captions
    got = model.describe(files["picture"], strategy="beam", num_beams=3, captions=2, max_length=7)[0].captions
    assert got == expected
    assert len(got) == 2
    text = model.caption(files["picture"], strategy="beam", num_beams=3, max_length=7)
    assert text == model.caption(files["picture"], decoding=DecodingConfig("beam", num_beams=3, max_length=7))
    with pytest.raises(ValueError, match="decoding and num_beams were both given"):
        model.caption(files["picture"], decoding=beam, num_beams=5)
    with pytest.raises(ValueError, match="there is no argument beams; .* set by strategy, captions, num_beams"):
        model.caption(files["picture"], beams=5)
    with pytest.raises(ValueError, match="num_beams is 0"):
        model.caption(files["picture"], num_beams=0)


# 4. and 5. loading, precision, what a model says of itself


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_narrow_models_give_the_same_as_wide_ones(name, dtype, folder, model, files):
    narrow = load(folder, "cpu", dtype=name)
    assert narrow.dtype == dtype
    assert {p.dtype for p in narrow.bundle.network.parameters()} == {dtype}
    items = [files[each] for each in ("picture", "other", "image", "video", "points")]
    found, texts = narrow.embed(items), narrow.embed_text(TEXTS)
    assert found.dtype == texts.dtype == torch.float32
    for got, expected in ((found, model.embed(items)), (texts, model.embed_text(TEXTS))):
        torch.testing.assert_close(got.norm(dim=1), torch.ones(len(got)))
        assert (got * expected).sum(dim=1).min() > 0.999
        assert (got - expected).norm(dim=1).max() < torch.pdist(expected).min() / 10
    scores, expected = narrow.score(items, TEXTS), model.score(items, TEXTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0.01, atol=0)
    for each in narrow.describe(items, strategy="beam", num_beams=3, max_length=8):
        assert np.isfinite(each.captions[0].log_probs).all()
        assert each.embedding.dtype == torch.float32
    assert len(narrow.caption(items, max_length=8)) == 5


def test_coordinates_are_not_rounded_in_narrow_models(folder, model):
    """Away from the origin neighbours share their bf16 coordinates, but it is their differences that are encoded."""
    cloud = np.random.default_rng(0).normal(size=(500, 3)) * 0.01 + [8.0, -8.0, 4.0]
    expected = model.embed(cloud)
    rounded = model.embed(torch.from_numpy(cloud).bfloat16())
    found = load(folder, "cpu", dtype="bf16").embed(cloud)
    assert (found - expected).norm() < (rounded - expected).norm() / 2


def test_a_model_moves_and_says_what_it_is(folder):
    model = load(str(folder))
    model.to("cpu")
    assert model.modalities == ("image", "video", "points")
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    text = repr(model)
    for part in ("image: TimmEncoder, ", "points: PointEncoder, ", "torch.float32, on cpu", "width 128", str(folder)):
        assert part in text
    total = sum(parameter.numel() for parameter in model.bundle.network.parameters())
    assert f"{total:,} parameters in all" in text
    assert model.to(torch.bfloat16) is model
    assert model.dtype == torch.bfloat16
    assert "bfloat16" in repr(model.to("cpu"))
    assert model.to("fp16", "cpu").dtype == torch.float16
    assert load(folder, "cpu", torch.float32).dtype == torch.float32
    for wrong in ("int8", torch.float64):
        with pytest.raises(ValueError, match="dtype is .*; choose one of bf16, fp16, fp32"):
            load(folder, dtype=wrong)


def test_revision_and_token_reach_the_hub(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *names, **how: asked.append((names, how)) or folder)
    model = load("someone/model", "cpu", revision="v2", token="secret")
    ((names, how),) = asked
    assert names == ("someone/model",)
    assert (how["revision"], how["token"]) == ("v2", "secret")
    assert "loaded from someone/model@v2" in repr(model)
    assert "secret" not in repr(model)


# 6. parts for training and data loaders


@pytest.mark.parametrize("modality", ["image", "video", "points"])
def test_transform_collate_and_encode_are_what_embed_does(modality, model, files):
    items = [files[modality], files[modality].read_bytes()]
    transform = pickle.loads(pickle.dumps(model.transform(modality)))
    batch = model.collate(modality, [transform(item) for item in items])
    embeddings = model.encode(modality, batch)
    same(embeddings.detach(), model.embed(items))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    model.bundle.network.zero_grad()
    embeddings[:, 0].sum().backward()
    gradients = [parameter.grad for parameter in model.bundle.network.encoders[modality].parameters()]
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_gradients_reach_the_inputs(model, files):
    batch = model.collate("image", [model.transform("image")(files["picture"])])
    batch["pixels"].requires_grad_()
    model.encode("image", batch)[:, 0].sum().backward()
    assert batch["pixels"].grad.abs().max() > 0


def test_texts_are_tokenized_and_encoded_with_gradients(model):
    ids, lengths = model.tokenize(iter(TEXTS))
    embeddings = model.encode_text(ids, lengths)
    same(embeddings.detach(), model.embed_text(TEXTS))
    model.bundle.network.zero_grad()
    embeddings[:, 0].sum().backward()
    assert model.bundle.network.text.token_embedding.weight.grad.abs().max() > 0
    same(model.embed_text(TEXTS[0]), model.embed_text(iter(TEXTS))[:1])


def test_a_transform_runs_in_data_workers(model, files):
    items = [str(files["picture"]), str(files["other"])]
    dataset = torch.utils.data.StackDataset(_Mapped(items, model.transform("image")))
    loader = torch.utils.data.DataLoader(dataset, 2, num_workers=1, multiprocessing_context="spawn")
    ((batch,),) = list(loader)
    same(model.encode("image", batch).detach(), model.embed(items))


class _Mapped(torch.utils.data.Dataset):
    def __init__(self, items, transform):
        self.items, self.transform = items, transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.transform(self.items[index])


def test_the_parts_name_wrong_modalities_and_broken_files(model, files):
    for call in (model.transform, partial(model.collate, samples=[]), partial(model.encode, inputs={})):
        with pytest.raises(ValueError, match="there is no modality 'sound'"):
            call("sound")
    with pytest.raises(UnreadableFileError, match="broken.jpg: .*none of JPEG"):
        model.transform("image")(files["broken"])


# 7. what is public


def test_the_package_shows_what_is_public_and_imports_it_late():
    code = (
        "import sys, json, multicoca\n"
        "heavy = sorted({'torch', 'numpy', 'PIL'} & set(sys.modules))\n"
        "names = dir(multicoca)\n"
        "late = sorted({'torch', 'numpy', 'PIL'} & set(sys.modules))\n"
        "import pydoc\n"
        "print(json.dumps([heavy, names, late, pydoc.plain(pydoc.render_doc(multicoca))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, names, late, documentation = json.loads(done.stdout)
    assert heavy == late == []
    public = {"load", "MultiCoCa", "Description", "Caption", "DecodingConfig", "UnreadableFileError", "Problem"}
    assert public <= set(names) & set(multicoca.__all__)
    for name in public:
        assert name in documentation
    assert "on_error" in documentation
    assert multicoca.load is load
    assert multicoca.UnreadableFileError is UnreadableFileError
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = multicoca.laod


def test_types_are_packaged():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packages = [ROOT / "multicoca", *(ROOT / "modalities").iterdir()]
    for package in packages:
        assert (package / "py.typed").is_file()
        assert "py.typed" in data[package.name]
    assert len(packages) == 4


@pytest.mark.parametrize(("before", "after"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_asleep_unless_the_user_says_otherwise(before, after):
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = "import multicoca, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | before, check=True)
    assert done.stdout.split() == [after, "False"]
