"""Every YAML is composed and built; wrong keys, types and targets are errors that say so."""

import re
from importlib.resources import files
from pathlib import Path

import multicoca_configs
import pytest
import torch

from multicoca.build import build, build_modalities, find_target
from multicoca.cli.compose import compose_config, compose_launcher, compose_training
from multicoca.config import from_yaml, to_yaml
from multicoca.runs.model_folder import build_bundle
from multicoca.text.tokenizer import TextTokenizer

CONFIGS = Path(str(files("multicoca_configs")))
GROUPS = {
    group.relative_to(CONFIGS).as_posix(): sorted(path.stem for path in group.glob("*.yaml"))
    for group in CONFIGS.rglob("*")
    if group.is_dir() and not group.name.startswith("_")
}
CHOICES = [
    (group, name)
    for group, names in sorted(GROUPS.items())
    for name in names
    if group not in ("hydra/launcher", "templates")
]
ROLES = ("source", "processor", "encoder", "part")
TOP = {"train", "train_shapes", "train_from", "evaluate"}


def overrides_for(group: str, name: str) -> list[str]:
    if group == "modality":
        return [f"modality=[image,{name}]" if name == "video" else f"modality=[{name}]"]
    own_data = ["model=tiny", "modality=[image]", "data.root=."] if group == "data" and name != "shapes" else []
    return [f"{group}={name}", *own_data] + (["data.root=."] if name.startswith("coca_") else [])


def test_nothing_in_the_folder_is_left_out():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == TOP
    assert sum(len(names) for names in GROUPS.values()) + len(TOP) == len(list(CONFIGS.rglob("*.yaml")))


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_and_builds(group, name):
    config = compose_training(overrides_for(group, name))
    tokenizer = TextTokenizer.learn(["a red ball"], 300, config.model.context_length)
    published = config.model.width > 512 or name.startswith("image_")  # too large to be built in a moment
    with torch.device("meta") if published else torch.device("cpu"):
        bundle = build_bundle(config.spec, tokenizer)
    assert set(bundle.network.heads) == set(config.modalities)


def test_a_launcher_is_composed_with_its_overrides():
    found = compose_launcher(["hydra/launcher=slurm", "hydra.launcher.nodes=4", "name=big"])
    assert found["_target_"].endswith("SlurmLauncher")
    assert (found["nodes"], found["tasks_per_node"], found["name"]) == (4, 8, "big")
    assert found["submitit_folder"] == "runs/big/slurm/%j"
    with pytest.raises(ValueError, match="nodess"):
        compose_launcher(["hydra/launcher=slurm", "hydra.launcher.nodess=4"])


@pytest.mark.parametrize("name", sorted(TOP))
def test_a_resolved_configuration_survives_yaml(name):
    config = compose_config(name, ["data=shapes"])
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.wdth=9", r"no key 'model\.wdth'; model has: width, num_heads"),
        ("nope=3", r"no key 'nope'; there are: name"),
        ("model.width=wide", "width"),
        ("experiment=none_such", "none_such"),
        ("model.width=-3", r"model\.width is -3; expected at least 1"),
        ("model.num_heads=7", r"which 7 heads cannot share equally"),
        ("model.pooler=attention", r"model\.pooler is 'attention'; choose one of cascade"),
        ("train.precision=fp8", r"train\.precision is 'fp8'"),
        ("parallel.strategy=tp", r"parallel\.strategy is 'tp'"),
        ("data.batch_size=0", r"data\.batch_size is 0; expected at least 1"),
        ("data.max_broken_share=5", r"data\.max_broken_share is 5"),
        ("data.decode_timeout_s=0", r"data\.decode_timeout_s is 0"),
        ("data.workers=-1", r"data\.workers is -1"),
        ("text.clean=all", r"text\.clean is 'all'"),
    ],
)
def test_a_wrong_override_is_an_error_that_names_it(override, message):
    with pytest.raises(ValueError, match=message):
        compose_config("train_shapes", [override])


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "multicoca",
        "torch.load",
        "torch.optim.AdamW",
        "multicoca.distributed.launch.run_processes",
        "multicoca.isolated.run_isolated",
        "multicoca.build.importlib.import_module",
        "multicoca_video.frames_decord.run_isolated",
        "multicoca_video.reader.Path",
        "multicoca_image_other.Thing",
    ],
)
def test_only_allowed_targets_are_built(target):
    for role in ROLES:
        with pytest.raises(ValueError, match="not allowed"):
            find_target(target, [role])


@pytest.mark.parametrize(
    ("role", "target"),
    [
        ("source", "multicoca.data.sources.Folder"),
        ("encoder", "multicoca_points.PointEncoder"),
        ("encoder", "multicoca_points.encoder.PointEncoder"),
        ("processor", "multicoca_image.timm_processor"),
        ("part", "multicoca_image.ConvStemConfig"),
    ],
)
def test_what_packages_declare_is_built_in_its_role_alone(role, target):
    assert find_target(target, [role])[1].__name__ == target.rpartition(".")[2]
    for other in {*ROLES} - {role}:
        with pytest.raises(ValueError, match=f"is declared as {role}; expected {other}"):
            find_target(target, [other])


def test_what_stands_inside_of_a_target_has_a_role_that_fits():
    with pytest.raises(ValueError, match="declared as source; expected encoder or part"):
        build_modalities(
            {
                "it": {
                    "processor": {"_target_": "multicoca_image.ImageProcessor", "size_px": 8},
                    "encoder": {
                        "_target_": "multicoca_video.VideoEncoder",
                        "frame_encoder": {"_target_": "multicoca.data.sources.Folder", "root": "/"},
                    },
                }
            }
        )


def test_every_target_of_the_configurations_is_allowed():
    targets = [
        line.split(":", 1)[1].split("#")[0].strip()
        for path in Path(multicoca_configs.__file__).parent.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.strip().startswith("_target_:")
    ]
    assert len(targets) > 10
    for target in targets:
        assert find_target(target, ROLES)


def test_settings_by_modality_need_no_plus():
    overrides = [
        "optim.lr_scale.image=0.1",
        "data.batch_sizes.video=8",
        "data.weights={image:3}",
        "data.batches_per_step=8",
    ]
    config = compose_config("train_shapes", overrides)
    assert (config.optim.lr_scale, config.data.batch_sizes, config.data.weights) == (
        {"image": 0.1}, {"video": 8}, {"image": 3.0},
    )  # fmt: skip


def test_an_unknown_argument_names_the_known_ones():
    with pytest.raises(ValueError, match="size_pixels.*it takes size_px"):
        build({"_target_": "multicoca_image.ImageProcessor", "size_pixels": 3}, "processor")


def test_an_encoder_can_be_shared_and_a_missing_one_is_named():
    specs = compose_config("train_shapes", []).modalities
    modalities = build_modalities(specs)
    assert modalities["video"].encoder.frame_encoder is modalities["image"].encoder
    with pytest.raises(ValueError, match=r"'video': \['image'\]"):
        build_modalities({"video": specs["video"]})


@pytest.mark.parametrize("name", ["image_clip", "image_siglip", "image_convnext"])
def test_video_agrees_with_an_image_encoder_by_the_overrides_that_its_file_gives(name):
    overrides = re.findall(
        r"^#   (\+?modalities\.video\S+)$", (CONFIGS / "modality" / f"{name}.yaml").read_text(), re.M
    )
    specs = compose_config("train_shapes", [f"modality=[{name},video]", *overrides]).modalities
    with torch.device("meta"):
        modalities = build_modalities(specs)
    image, video = modalities["image"].processor, modalities["video"].processor
    assert modalities["video"].encoder.frame_encoder is modalities["image"].encoder
    assert [video.size_px] * 2 == [image.size_px, 224]
    for constant in ("mean", "std"):
        ours, theirs = (torch.tensor(vars(processor)[constant]).expand(3) for processor in (video, image))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("optim.lr_scale.sound=1", "optim.lr_scale names sound; the modalities are image"),
     ("data.batch_sizes.sound=3", "data.batch_sizes names sound"), ("data.micro_batches=0", "micro_batches is 0"),
     ("evaluation.templates.sound=photo", "evaluation.templates names sound"), ("parallel.shard=0", "shard is 0"),
     ("train.cpu_processes=-1", "cpu_processes is -1"), ("train.last_blocks=-1", "last_blocks is -1"),
     ("data.temperature=0", "temperature is 0"), ("data.weights.image=2", "without data.batches_per_step")],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_composition(setting, message):
    with pytest.raises(ValueError, match=message):
        compose_training([setting])


def test_a_modality_that_is_left_out_takes_its_settings_along():
    config = compose_training(["data.batch_sizes={image:8,points:4}", "data.weights={image:1,points:2}",
                               "data.batches_per_step=3", "optim.lr_scale.points=0.5"])  # fmt: skip
    limited = config.limited_to(["image", "video"])
    assert list(limited.modalities) == ["image", "video"]
    assert (limited.data.weights, limited.data.batch_sizes, limited.optim.lr_scale) == (
        {"image": 1.0},
        {"image": 8},
        {},
    )
    assert limited.data.batches_per_step == 3
