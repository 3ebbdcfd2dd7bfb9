"""Model folders from elsewhere: nothing in them runs, nothing is fetched, and each that is no model is one line."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from multicoca.cli.compose import compose_training
from multicoca.runs.model_folder import build_bundle, load_bundle, read_spec
from multicoca.runs.save import save
from multicoca.text.tokenizer import TextTokenizer

TOKENIZER = TextTokenizer.learn(["a red ball"], 300, 48)
SIZES = ["model.width=32", "model.num_heads=2", "model.mlp_width=64", "model.embedding_width=24"]
RAN = "multicoca_ran_this"


@pytest.fixture
def folder(tmp_path):
    """A whole model folder, untrained."""
    config = compose_training(["modality=[image,video,points]", *SIZES])
    save(tmp_path / "model", build_bundle(config.spec, TOKENIZER), config, "")
    return tmp_path / "model"


def change(folder, place, value):
    """Sets a dotted place of config.yaml."""
    file = folder / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    *path, last = place.split(".")
    node = settings
    for key in path:
        node = node[key]
    node[last] = value
    file.write_text(yaml.safe_dump(settings))


TARGETS = [
    "os.system", "subprocess.run", "builtins.eval", "builtins.exec", "torch.load", "pickle.loads", "shutil.rmtree",
    "multicoca.distributed.launch.run_processes", "multicoca.cli.main.main", "multicoca.files.write_text",
    "multicoca.isolated.run_isolated", "multicoca.build.importlib.import_module", "multicoca_image.decoding.open",
    "multicoca_image.timm_models.importlib.import_module", "multicoca_points.load_open3d", "multicoca_video.open_video",
    "multicoca_video.reader.subprocess.run", "multicoca_image.__loader__.exec_module", "multicoca_image.TARGETS.get",
    "multicoca.data.sources.Folder", "", ".", "multicoca_image.", "multicoca_image.timm_processor.__globals__",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("place", ["modalities.image.encoder", "modalities.image.processor"])
def test_no_target_runs_that_is_not_declared_for_its_place(folder, tmp_path, place, target):
    mark = tmp_path / RAN
    change(folder, place, {"_target_": target, "_args_": [f"touch {mark}"], "args": f"touch {mark}", "name": "x"})
    refused(folder)
    assert not mark.exists()


def refused(folder, match=None):
    with pytest.raises(ValueError, match=match) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value).split(": Error(s) in loading")[0]
    return str(caught.value)


def nested(depth):
    return "model: " + "[" * depth + "]" * depth


CONFIGS = {
    "empty": "",
    "a list": "- 1\n- 2\n",
    "a word": "hello",
    "torn": "model: {width: 32\nmodalities: [",
    "a tag": "model: !!python/object/apply:os.system ['touch /tmp/never']\nmodalities: {}",
    "bytes": "model: !!binary aGVsbG8=\nmodalities: {}",
    "a date": "model: 2020-01-01\nmodalities: {}",
    "references": "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nmodel: *b\nmodalities: *b\n",
    "a circle": "model: &m {width: *m}\nmodalities: {}",
    "a merge": "base: &b {width: 9}\nmodel: {<<: *b}\nmodalities: {}",
    "deep": nested(200),
    "very deep": nested(20000),
    "keys that are no words": "model: {1: 2}\nmodalities: {}",
    "no modalities": "model: {}\n",
    "modalities is a list": "model: {}\nmodalities: [1]\n",
    "a modality is a word": "model: {}\nmodalities: {image: x}\n",
    "a processor is a number": "model: {}\nmodalities: {image: {processor: 1, encoder: 2}}\n",
    "not a number": "model: {width: .nan}\nmodalities: {}",
    "infinite": "model: {width: .inf}\nmodalities: {}",
    "huge": "model: {width: 1000000000000}\nmodalities: {}",
    "astronomic": "model: {width: " + "9" * 5000 + "}\nmodalities: {}",
    "long": "model: {}\nmodalities: {}\nx: '" + "y" * (1 << 21) + "'",
    "control characters": 'model: {pooler: "\\x1b[2J"}\nmodalities: {}',
    "missing": "model: {width: ???}\nmodalities: {}",
    "an unknown key": "model: {wdth: 3}\nmodalities: {}",
    "an unknown choice": "model: {pooler: magic}\nmodalities: {}",
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_malformed_configuration_is_one_line(folder, content):
    (folder / "config.yaml").write_text(content)
    assert len(refused(folder)) < 1500


def test_a_configuration_that_is_not_text_is_one_line(folder):
    (folder / "config.yaml").write_bytes(b"\xff\xfe\x00model")
    refused(folder, "config.yaml is not a plain configuration")


@pytest.mark.parametrize("place", ["model.pooler", "modalities.image.encoder.name", "text.clean"])
@pytest.mark.parametrize("word", ["${oc.env:HOME}", "${oc.decode:1}", "${now:%Y}", "a${model.width}"])
def test_interpolation_is_refused(folder, place, word):
    change(folder, place, word)
    refused(folder, "interpolation is not allowed")


SIZES_REFUSED = {
    "model.width": 1 << 30,
    "model.unimodal_layers": 10**6,
    "model.num_queries": 10**9,
    "model.context_length": 10**9,
    "model.embedding_width": -5,
    "modalities.image.encoder.timm_options.embed_dim": 10**9,
    "modalities.image.encoder.timm_options.depth": 10**8,
    "modalities.image.encoder.timm_options.checkpoint_path": "/etc/passwd",
    "modalities.image.encoder.timm_options.pretrained_cfg": {"url": "http://127.0.0.1:9/"},
    "modalities.image.encoder.name": "hf-hub:somebody/something",
    "modalities.image.processor.size_px": "large",
    "modalities.image.encoder.timm_options": 7,
    "modalities.image.encoder.image_size_px": 10**8,
    "modalities.image.encoder.stem": {"_target_": "multicoca_image.ConvStemConfig", "channels": [10**8, 10**8]},
    "modalities.image.processor.scene_size_px": 10**8,
    "modalities.video.encoder.num_frames": 10**9,
    "modalities.video.encoder.mixing_blocks": 10**8,
    "modalities.video.processor.num_frames": 10**8,
    "modalities.points.encoder.depth": 10**8,
    "modalities.points.encoder.width": 10**9,
    "modalities.points.encoder.group_widths": [64, 64, 64, 10**9],
    "modalities.points.processor.num_points": 10**12,
}


@pytest.mark.parametrize("place", SIZES_REFUSED)
def test_sizes_and_options_are_checked_before_anything_is_built(folder, place):
    change(folder, place, SIZES_REFUSED[place])
    started = time.monotonic()
    refused(folder)
    assert time.monotonic() - started < 20


def test_a_model_that_is_larger_than_its_weights_takes_no_memory(folder):
    change(folder, "model.unimodal_layers", 900)
    change(folder, "model.width", 60000)
    change(folder, "model.num_heads", 1)
    refused(folder, "values and .* only")


@pytest.mark.parametrize("key", ["pretrained", "checkpoint"])
def test_loading_fetches_no_other_weights(folder, key, monkeypatch):
    def no_network(*arguments, **named):
        raise AssertionError("it reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    change(folder, f"modalities.image.encoder.{key}", True if key == "pretrained" else "/dev/zero")
    load_bundle(folder)


WEIGHTS = {
    "empty": b"",
    "cut": None,
    "a header of any length": (1 << 62).to_bytes(8, "little") + b"{}",
    "no header": (2).to_bytes(8, "little") + b"[]",
    "a pickle": b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_none_are_one_line(folder, kind):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if WEIGHTS[kind] is None else WEIGHTS[kind])
    refused(folder, "model.safetensors")


def test_missing_and_misnamed_weights_are_one_line(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    first = next(iter(weights))
    save_file({**weights, "extra": weights[first].clone()}, file)
    refused(folder, "do not fit the model")
    save_file({name: value for name, value in weights.items() if name != first}, file)
    refused(folder)
    file.unlink()
    refused(folder, "model.safetensors")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"type": "BPE"}}', "x" * 100, '{"version": 9}'])
def test_a_tokenizer_that_is_none_is_one_line(folder, content):
    (folder / "tokenizer.json").write_text(content)
    refused(folder, "tokenizer.json")


def test_an_index_that_names_a_foreign_folder_runs_nothing(folder, tmp_path):
    mark = tmp_path / RAN
    change(folder, "modalities.image.encoder", {"_target_": "os.system", "command": f"touch {mark}"})
    index = tmp_path / "index"
    index.mkdir()
    (index / "index.json").write_text(json.dumps({"model": str(folder), "width": 24, "count": 0}))
    (index / "embeddings.bin").touch()
    (index / "files.jsonl").touch()
    command = [sys.executable, "-m", "multicoca.cli.main", "search", str(index), "a red ball"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert "is not allowed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not mark.exists()


def test_a_folder_of_an_earlier_version_loads(folder):
    """Targets by their module, keys of training that are gone, settings that there were not yet."""
    change(folder, "modalities.image.encoder._target_", "multicoca_image.encoder.TimmEncoder")
    change(folder, "gone", {"key": 1})
    change(folder, "optim.gone", 2)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    del settings["model"]["contrastive"], settings["train"], settings["seed"]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    bundle, spec = load_bundle(folder)
    assert spec.model.contrastive == "softmax"
    weights = load_file(folder / "model.safetensors")
    torch.testing.assert_close(bundle.network.text_projection.weight.data, weights["text_projection.weight"])


def test_what_is_read_is_what_was_written(folder):
    config = compose_training(["modality=[image,video,points]", *SIZES])
    assert read_spec(folder) == config.spec


LOAD = """
import json, sys
import numpy, torch, timm
before, threads = set(sys.modules), torch.get_num_threads()
import multicoca
multicoca.load(sys.argv[1]).caption([numpy.zeros((32, 32, 3), numpy.uint8)])
assert torch.get_num_threads() == threads
print(json.dumps(sorted(set(sys.modules) - before)))
"""
NOT_NEEDED = {
    "multicoca.train", "multicoca.eval", "multicoca.cli", "multicoca.config", "multicoca_video", "multicoca_points",
    "tensorboard", "torch.utils.tensorboard", "torch._dynamo", "torch._inductor", "sympy", "hydra", "matplotlib",
    "scipy", "pandas", "open3d", "trimesh", "decord", "av", "transformers", "fsspec", "aiohttp", "ftfy",
}  # fmt: skip


def test_loading_a_model_and_a_first_caption_import_no_training_code_and_no_other_modality(tmp_path):
    config = compose_training(["modality=[image]", *SIZES])
    save(tmp_path, build_bundle(config.spec, TOKENIZER), config, "")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout.splitlines()[-1])
    assert {"multicoca.api", "multicoca_image"} <= set(imported)
    assert [name for name in imported if any(f"{name}.".startswith(f"{each}.") for each in NOT_NEEDED)] == []
