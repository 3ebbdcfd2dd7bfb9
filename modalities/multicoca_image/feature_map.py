"""Any timm backbone with a feature map (ConvNeXt, ResNet, Swin, ...) as an image encoder: one token per place.

The map of one stage is read through timm's `forward_intermediates`, which gives [batch, channels, height, width]
whatever layout the backbone computes in, and `prune_intermediate_layers` removes what comes after the stage. Unlike
timm's `features_only`, this keeps the names of the weights. The map comes as `features_only` gives it: before the
norm that timm counts to the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multicoca.modality import check_sizes
from multicoca.tokens import Tokens
from multicoca_image.timm_models import MAX_SIDE_PX, create_model, load_strictly, published_settings, read_checkpoint


class TimmFeatureMap(nn.Module):
    """The feature map of a timm backbone as tokens, see `multicoca.modality.Encoder`.

    BatchNorm always uses its stored statistics and learns only scale and shift: so no sample's tokens depend on what
    shares its batch or its process. A backbone with BatchNorm is therefore meant to start from weights; one without
    (ConvNeXt, `resnet50_gn`) also trains from scratch.
    """

    def __init__(
        self,
        name: str,
        stage: int = -1,
        image_size_px: int | None = None,
        pretrained: bool = False,
        checkpoint: str | None = None,
        timm_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Builds the model up to a stage and loads its weights.

        Args:
            name: a timm name with an optional tag, e.g. "convnext_tiny" or "resnet50.a1_in1k".
            stage: which of the backbone's feature maps, from 0, or from -1 backwards; later stages are left out.
            image_size_px: height and width of the images, for backbones that are built for one size (Swin); None
                keeps their own. Others, such as ConvNeXt and ResNet, take any size and no such setting.
            pretrained: download the weights that timm lists under the name.
            checkpoint: a local file of weights instead, .safetensors or a torch file without pickled objects.
            timm_options: passed on to `timm.create_model`, e.g. {"drop_path_rate": 0.1}.

        Raises:
            ValueError: timm has no such model, it gives no feature map or not this one, the settings contradict each
                other, or the weights cannot be had or do not fit the model.
            ImportError: timm is not installed.
        """
        super().__init__()
        if pretrained and checkpoint is not None:
            raise ValueError("pretrained and checkpoint both bring weights; set one of them")
        published, options = published_settings(name), dict(timm_options or {})
        fixed = bool(published["fixed_input_size"])
        if image_size_px is not None:
            if not fixed:
                raise ValueError(f"'{name}' takes images of any size; remove image_size_px ({image_size_px})")
            check_sizes(most=MAX_SIDE_PX, image_size_px=image_size_px)
            options["img_size"] = image_size_px
        model = create_model(name, pretrained, num_classes=1, **options)  # with its head, whose names a file may have
        chosen = _stage(model, name, stage)
        self.width: int = model.feature_info[chosen]["num_chs"]
        weights = None if checkpoint is None else read_checkpoint(Path(checkpoint), model)
        names = model.state_dict().keys()
        self._indices = model.prune_intermediate_layers([chosen], prune_norm=True)
        _remove_head(model, published.get("classifier") or ())
        if weights is not None:
            load_strictly(model, weights, Path(checkpoint), tuple(names - model.state_dict().keys()))
        self.model = model
        fixed = fixed and not options.keys() & {"dynamic_img_size", "strict_img_size"}
        self._size_px = _pair(options.get("img_size", published["input_size"][-2:])) if fixed else None

    @property
    def blocks(self) -> nn.ModuleList:
        """The backbone's parts in order: its stages, or their blocks where timm holds a stage as a plain sequence.

        The list is made anew, of the very parts that run: change a part in place.
        """
        units: list[nn.Module] = []
        for child in self.model.children():
            units += child if isinstance(child, (nn.Sequential, nn.ModuleList)) else [child]
        return nn.ModuleList(unit for unit in units if any(True for _ in unit.parameters()))

    def train(self, mode: bool = True) -> TimmFeatureMap:
        """Sets the mode; BatchNorm stays in that of evaluation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, inputs: dict[str, Tensor]) -> Tokens:
        """Encodes {"pixels": float [batch, 3, height, width]}.

        Returns:
            The places of the map row by row, all real; `grid` is its (height, width).

        Raises:
            ValueError: the image size is not the one that the model was built for.
        """
        pixels = inputs["pixels"]
        if self._size_px is not None and tuple(pixels.shape[-2:]) != self._size_px:
            raise ValueError(
                f"the image is {pixels.shape[-2]} x {pixels.shape[-1]} px, the encoder was built for "
                f"{self._size_px[0]} x {self._size_px[1]}. Set image_size_px and the processor's size_px to the same"
            )
        (features,) = self.model.forward_intermediates(
            pixels, indices=self._indices, output_fmt="NCHW", intermediates_only=True
        )
        return Tokens(features.flatten(2).transpose(1, 2), grid=tuple(features.shape[-2:]))


def _stage(model: nn.Module, name: str, stage: int) -> int:
    """Returns the index of a stage from 0, or raises ValueError."""
    if not callable(getattr(model, "forward_intermediates", None)):
        raise ValueError(
            f"timm's '{name}' gives no feature map; choose another model, for example convnext_tiny or resnet50"
        )
    count = len(model.feature_info)
    if not -count <= stage < count:
        maps = ", ".join(
            f"{index} ({model.feature_info[index]['num_chs']} channels, 1/{model.feature_info[index]['reduction']})"
            for index in range(count)
        )
        raise ValueError(f"stage is {stage}; '{name}' has the feature maps {maps}, or -1 to -{count} from the last")
    return stage % count


def _remove_head(model: nn.Module, classifiers: str | Sequence[str]) -> None:
    """Removes the module that holds the classifier: before 1.0.31, timm left the norm of ConvNeXt's head in it."""
    for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers:
        setattr(model, classifier.partition(".")[0], nn.Identity())


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
