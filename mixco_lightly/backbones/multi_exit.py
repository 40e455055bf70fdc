"""A timm backbone with sub-networks on its stages: a network with several exits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from mixco_lightly.backbones.backbone import Backbone, create_backbone

SUBNETWORKS = ("fc", "small", "same")


class MultiExitBackbone(nn.Module):
    """A backbone with sub-networks on chosen stages, as in SelfCon [0].

    All exits share one forward of the backbone. Each sub-network computes as many features as the
    backbone from the feature map of its stage; it shares no parameters with the later stages.

    The sub-networks are the authors' (raymin0223/self-contrastive-learning at commit 5e7c2c5):

    - "fc": global average pool and one linear layer, for any backbone.
    - "same": newly initialised copies of the backbone's remaining stages, for timm's ``ResNet``
      class, which includes ResNeXt, SE-ResNet and others.
    - "small": as "same", with half as many blocks in each stage, rounded down, but at least one.

    Stages are numbered from 1 along timm's ``feature_info``, not counting a stem: 1 to 4 for a
    ResNet, ConvNeXt or Swin, 1 to 5 for an EfficientNet, and one for each block of a ViT. An exit
    can follow any stage but the last.

    - [0]: SelfCon, 2021, https://arxiv.org/abs/2106.15499

    Args:
        backbone_name: A timm model name for :func:`mixco_lightly.create_backbone`.
        image_size: Height and width of the images in pixels.
        exits: Stages that a sub-network follows, in ascending order. The default is the authors'
            for ResNets. If empty, the only exit is the backbone's own.
        subnetwork: "fc", "small" or "same". The default is the authors' for CIFAR-100; for
            ImageNet they use "same".
        stem: "timm", "small" or "auto", as in ``create_backbone``.
        pretrained: If True, timm's published weights are loaded into the backbone. Sub-networks
            are always initialised at random.
        **backbone_kwargs: Passed to ``create_backbone``: ``in_chans`` and timm's own arguments.

    Attributes:
        backbone: The :class:`mixco_lightly.Backbone`, which can be exported or used alone.
        subnetworks: The sub-networks in the order of ``exits``.
        exits: The stages.
        subnetwork: "fc", "small" or "same".
        feature_dim: Number of features of each exit, the same as the backbone's.

    Raises:
        ValueError: If the backbone cannot be built, if timm gives no access to its stages, if
            exits are not ascending stages before the last, or if it cannot have such
            sub-networks.

    Examples:
        >>> import torch
        >>> from mixco_lightly import MultiExitBackbone
        >>> network = MultiExitBackbone("test_resnet", image_size=32, exits=(1, 2))
        >>> [tuple(features.shape) for features in network(torch.rand(4, 3, 32, 32))]
        [(4, 96), (4, 96), (4, 96)]
    """

    def __init__(
        self,
        backbone_name: str,
        image_size: int,
        exits: Sequence[int] = (2,),
        subnetwork: str = "fc",
        stem: str = "auto",
        pretrained: bool = False,
        **backbone_kwargs: Any,
    ) -> None:
        super().__init__()
        backbone = create_backbone(
            backbone_name, image_size, stem=stem, pretrained=pretrained, **backbone_kwargs
        )
        self._add_exits(backbone, exits, subnetwork)

    @classmethod
    def from_backbone(
        cls, backbone: Backbone, exits: Sequence[int] = (2,), subnetwork: str = "fc"
    ) -> MultiExitBackbone:
        """Adds sub-networks to an existing backbone.

        Args:
            backbone: From ``create_backbone`` or ``load_backbone``; it is not copied.
            exits: Stages that a sub-network follows, in ascending order.
            subnetwork: "fc", "small" or "same".

        Returns:
            The network.

        Raises:
            ValueError: As for the class.

        Examples:
            >>> from mixco_lightly import MultiExitBackbone, create_backbone
            >>> backbone = create_backbone("test_vit", image_size=32)
            >>> MultiExitBackbone.from_backbone(backbone, exits=(3,)).feature_dim
            64
        """
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._add_exits(backbone, exits, subnetwork)
        return network

    def _add_exits(self, backbone: Backbone, exits: Sequence[int], subnetwork: str) -> None:
        if subnetwork not in SUBNETWORKS:
            raise ValueError(
                f"subnetwork must be one of {', '.join(SUBNETWORKS)}, got {subnetwork!r}."
            )
        self.backbone = backbone
        self.exits = tuple(exits)
        self.subnetwork = subnetwork
        self.feature_dim = backbone.feature_dim
        self.subnetworks = nn.ModuleList()
        if not self.exits:
            return
        stages = _find_stages(backbone)
        last = len(stages) - 1
        if not all(1 <= stage <= last for stage in self.exits) or any(
            before >= after for before, after in zip(self.exits, self.exits[1:], strict=False)
        ):
            raise ValueError(
                f"exits must be stages from 1 to {last} of {backbone.name} in ascending order, got "
                f"{self.exits}."
            )
        # Positions in timm's feature_info, which may start with the stem.
        self._indices = [stages[stage - 1] for stage in self.exits]
        channels = _check_intermediates(backbone, self._indices)
        for stage, num_channels in zip(self.exits, channels, strict=True):
            if subnetwork == "fc":
                layers = nn.AdaptiveAvgPool2d(1), nn.Flatten()
                part = nn.Sequential(*layers, nn.Linear(num_channels, self.feature_dim))
            else:
                part = _copy_stages(backbone, stage, halved=subnetwork == "small")
            self.subnetworks.append(part)
        self.subnetworks.to(next(backbone.parameters()))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Computes the features of all exits with one forward of the backbone.

        Args:
            images: Shape (N, in_chans, image_size, image_size).

        Returns:
            Features of shape (N, feature_dim) of the sub-networks in the order of ``exits``, then
            of the backbone. The backbone's equal ``backbone(images)`` bit by bit.
        """
        if not self.exits:
            return [self.backbone(images)]
        model: Any = self.backbone.model
        last, maps = model.forward_intermediates(images, indices=self._indices)
        features = [part(x) for part, x in zip(self.subnetworks, maps, strict=True)]
        return [*features, model.forward_head(last)]


def _find_stages(backbone: Backbone) -> list[int]:
    """Returns the positions of the stages in timm's feature_info, which may begin with a stem.

    A stem is recognised by its name, because stages share theirs but for a number: act1, layer1,
    layer2, ... or stem, s1, s2, ...
    """
    model: Any = backbone.model
    infos = getattr(model, "feature_info", None)
    if not infos or len(infos) < 2 or not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"timm gives no access to stages of {backbone.name} (feature_info and "
            "forward_intermediates), so it can have no sub-networks. Choose another backbone, "
            "such as resnet18, or exits=() for the backbone alone."
        )
    first, second = ("".join(c for c in info["module"] if not c.isdigit()) for info in infos[:2])
    return list(range(len(infos)))[first != second :]


@torch.no_grad()
def _check_intermediates(backbone: Backbone, indices: list[int]) -> list[int]:
    """Returns the channels of the feature maps.

    Raises a ValueError if forward_intermediates does not compute the features of forward: some
    families do more in forward.
    """
    model: Any = backbone.model
    shape = (2, backbone.in_chans, backbone.image_size, backbone.image_size)
    # Not drawn at random, so that this check does not change the weights drawn after it.
    images = torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape)
    images = images.to(next(model.parameters()))
    modes = [(module, module.training) for module in model.modules()]
    try:
        expected = model.eval()(images)
        last, maps = model.forward_intermediates(images, indices=indices)
        are_equal = torch.equal(model.forward_head(last), expected)
    finally:
        for module, training in modes:
            module.training = training
    if not are_equal or any(x.dim() != 4 for x in maps):
        raise ValueError(
            f"timm {timm.__version__} does not compute the feature maps of {backbone.name} as part "
            "of its forward. Choose another backbone, such as resnet18, or exits=() for the "
            "backbone alone."
        )
    return [x.shape[1] for x in maps]


def _copy_stages(backbone: Backbone, stage: int, halved: bool) -> nn.Sequential:
    """Returns the stages of a ResNet after the given one, newly initialised, and its pool.

    They are taken from a second model that timm builds with fewer blocks, so that strides, kinds
    of block and initialisation are timm's. timm initialises the last BatchNorm of each block with
    zero, which the authors do not; ``zero_init_last=False`` does as they do.
    """
    model = backbone.model
    if not isinstance(model, ResNet):
        raise ValueError(
            "The sub-networks 'small' and 'same' need the stages of a ResNet, but "
            f"{backbone.name} is a {type(model).__name__}: choose subnetwork='fc'."
        )
    counts = [len(getattr(model, f"layer{number}")) for number in (1, 2, 3, 4)]
    # Stages up to the exit are discarded, so they need only one block.
    layers = [
        1 if number <= stage else max(1, count // 2) if halved else count
        for number, count in enumerate(counts, start=1)
    ]
    kwargs = {**backbone.timm_kwargs, "layers": layers}
    fresh: Any = create_backbone(
        backbone.name, backbone.image_size, backbone.in_chans, backbone.stem, **kwargs
    ).model
    stages = [getattr(fresh, f"layer{number}") for number in range(stage + 1, 5)]
    return nn.Sequential(*stages, fresh.global_pool)
