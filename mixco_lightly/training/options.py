"""The options of a pretraining run.

They are one frozen dataclass, put together from the groups below, with flat names on the command
line. A function takes the group it needs: a :class:`PretrainConfig` is one of each. What the user
leaves open is completed once, by :func:`mixco_lightly.training.resolve.resolve`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from mixco_lightly.data.mixing_names import MixingName
from mixco_lightly.evaluation.protocols import DEFAULT_PROTOCOLS, ProtocolName
from mixco_lightly.training.option_types import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

# An option that may change when a run is resumed: it changes where the run is and what is recorded,
# not what is trained.
_FREE = {"use": "free"}
# An option of the command, which a run's config.yaml does not have.
_COMMAND = {"use": "command"}

ProtocolOrNone = Literal[ProtocolName, "none"]
LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class DataOptions:
    """Data.

    Args:
        dataset: One of digits, cifar10, cifar100, tiny-imagenet, imagefolder, huggingface,
            webdataset; or a function of your own that opens a dataset, such as my_data.py:create,
            whose file is run. Default: the dataset found in data_dir, or digits without data_dir.
            An imagefolder has labels only in train/CLASS beside test/CLASS or val/CLASS; of any
            other folder, all images (or those in its folder train) are trained on without labels.
            webdataset reads tar shards: train*.tar with test*.tar or val*.tar.
        data_dir: Folder of the data; not used for digits. For huggingface, a folder or the name of
            a dataset on the Hub. Default: data.
        image_column: Column of the images, for huggingface. Default: found by its type or name.
        label_column: Column of the labels, for huggingface. Default: likewise.
        download: Whether to download CIFAR if it is missing.
        train_fraction: Part of the training images to train on, drawn by the seed, with the same
            part of each class. The evaluation uses all of them.
        keep_decoded: Whether the images of a folder are decoded once and kept in data_dir/.decoded.
        max_broken_images: How many images of a folder may be skipped because they cannot be opened,
            of the training and of the test images each; of a stream, in a pass and on a device. If
            it is not 0, every image is opened once before the run (of a stream, only while it is
            read), and output_dir/broken_images.txt lists those skipped. With 0 the first broken
            image stops the run.
    """

    dataset: str | None = None
    data_dir: str | None = field(default=None, metadata=_FREE)
    image_column: str | None = None
    label_column: str | None = None
    download: bool = field(default=False, metadata=_FREE)
    train_fraction: PositiveFloat = 1.0
    keep_decoded: bool = field(default=True, metadata=_FREE)
    max_broken_images: NonNegativeInt = 0


@dataclass(frozen=True)
class ViewOptions:
    """Views.

    Args:
        image_size: Height and width of the views in pixels. Default: the dataset's; an imagefolder
            has none and needs this option.
        min_scale: Smallest area of the random crops, as a part of the image's area. Default: 0.2,
            as in the authors' code; 0.5 for digits.
        augmentations: Random changes of the views: full, or crop-flip for crops and flips only.
        transform: A function of your own that creates the transform, such as my_data.py:views,
            whose file is run; or one of Lightly's, such as lightly.transforms:SimCLRTransform.
            Default: the method's.
        augment: Where images are augmented: device, in batches where the network runs; workers, one
            by one in the loader's processes with Lightly's own transform; auto chooses device
            unless the images have different sizes or transform is given.
    """

    image_size: PositiveInt | None = None
    min_scale: PositiveFloat | None = None
    augmentations: Literal["full", "crop-flip"] = "full"
    transform: str | None = None
    augment: Literal["auto", "device", "workers"] = "auto"


@dataclass(frozen=True)
class NetworkOptions:
    """Network.

    Args:
        backbone: A timm model name. Default: resnet18; for digits test_resnet, timm's smallest.
        stem: timm as published, small for small images, or auto to choose by image size. Default:
            auto; for digits timm.
        backbone_kwargs: Further arguments of timm's model, such as '{"drop_path_rate": 0.1}'.
        pretrained: Whether to start from timm's published weights.
        projection_dim: Dimension of the projections.
    """

    backbone: str | None = None
    stem: Literal["auto", "timm", "small"] | None = None
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    projection_dim: PositiveInt = 128


class OptimiserDefaults(NamedTuple):
    """Values of the options that depend on the optimiser, where the user gives none.

    Attributes:
        learning_rate: Highest learning rate.
        weight_decay: L2 penalty.
        warmup: Part of the epochs that the learning rate rises in.
    """

    learning_rate: float
    weight_decay: float
    warmup: float = 0.0


@dataclass(frozen=True)
class OptimiserOptions:
    """Optimiser.

    Args:
        epochs: Passes over the training images.
        max_steps: Length of the run in optimiser steps. With it --epochs is ignored: the run has as
            many epochs as these steps take, the last one cut short. A stream needs it.
        steps_per_epoch: What counts as an epoch of a stream, for checkpoints and for options in
            epochs. Default: 1000.
        batch_size: Images in a batch, on each device.
        optimizer: The optimiser: sgd, with momentum 0.9; adamw; lars, for large batches; or auto,
            sgd for convolutions with BatchNorm and adamw for attention, LayerNorm and all else.
        learning_rate: Highest learning rate of a cosine schedule. Default: the method's for the
            optimiser, which the run prints; a tenth of it with --pretrained.
        base_learning_rate: The same for batches of 256 images. With sgd and lars it is multiplied
            by the images of a step / 256, with adamw by the root of that.
        weight_decay: L2 penalty: on all weights with sgd; with adamw and lars on all but norms,
            biases, positions and tokens. Default: the method's for the optimiser.
        warmup_epochs: Epochs of linear warm-up. Default: a tenth of the epochs with adamw, with
            lars and for depthwise convolutions; otherwise 0.
        gradient_clip: Largest norm of the gradient, which is made shorter if need be; 0 for any.
        accumulate: Batches whose gradients are added up to one step.
    """

    # A method's options class may have its own.
    sgd_defaults: ClassVar = OptimiserDefaults(learning_rate=0.06, weight_decay=5e-4)
    adamw_defaults: ClassVar = OptimiserDefaults(learning_rate=5e-4, weight_decay=0.05, warmup=0.1)
    lars_defaults: ClassVar = OptimiserDefaults(learning_rate=0.3, weight_decay=1e-6, warmup=0.1)

    epochs: PositiveInt = 30
    max_steps: PositiveInt | None = None
    steps_per_epoch: PositiveInt | None = None
    batch_size: PositiveInt = 128
    optimizer: Literal["auto", "sgd", "adamw", "lars"] = "auto"
    learning_rate: PositiveFloat | None = None
    base_learning_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    warmup_epochs: NonNegativeFloat | None = None
    gradient_clip: NonNegativeFloat = 0.0
    accumulate: PositiveInt = 1

    @property
    def length(self) -> str:
        """The length of the run in words."""
        epochs = f"{self.epochs} epochs"
        return epochs if self.max_steps is None else f"{self.max_steps:,} steps ({epochs})"


def optimiser_arguments(options: OptimiserOptions) -> dict[str, Any]:
    """Returns the arguments that every model of this package takes for its optimiser.

    Args:
        options: The completed options.
    """
    return {
        "optimizer": options.optimizer,
        "learning_rate": options.learning_rate,
        "weight_decay": options.weight_decay,
        "warmup_epochs": options.warmup_epochs,
    }


@dataclass(frozen=True)
class MixingOptions:
    """Mixing.

    Args:
        temperature: Divides the similarities of plain images.
        mix_temperature: Divides the similarities of mixtures.
        mix_weight: Weight of the mixtures' term; 0 is the plain baseline.
        mix_probability: Part of the steps that are mixed, drawn by the seed; the others are plain.
        alpha: The mixtures' weights follow Beta(alpha, alpha); 1 is uniform.
        mixing: How two images are mixed: mixup, weighted sums; cutmix, a box of one in the other;
            mask, blocks of one in the other; mixup-or-cutmix, one of the two for each batch.
    """

    temperature: PositiveFloat = 0.2
    mix_temperature: PositiveFloat = 0.2
    mix_weight: NonNegativeFloat = 1.0
    mix_probability: ClosedUnitInterval = 1.0
    alpha: PositiveFloat = 1.0
    mixing: MixingName = "mixup"


@dataclass(frozen=True)
class MeasureOptions:
    """Evaluation.

    Args:
        protocol: What is measured at the end: torch and sklearn are linear probes. With none,
            knn_every_n_epochs is skipped too, as both are for images without labels.
        random_init: Whether to measure the backbone at initialisation too.
        knn_k: Number of neighbours of the kNN evaluation.
        knn_every_n_epochs: Every how many epochs nearest neighbours are tried on a few training
            images, whose labels training never sees; 0 for never. It takes 1 to 2% of the time.
        online_probe: Whether a linear classifier is trained beside the network, on the features of
            its steps. It is measured on the images that the nearest neighbours classify.
    """

    protocol: list[ProtocolOrNone] = field(
        default_factory=lambda: [*DEFAULT_PROTOCOLS], metadata=_FREE
    )
    random_init: bool = field(default=True, metadata=_FREE)
    knn_k: PositiveInt = field(default=200, metadata=_FREE)
    knn_every_n_epochs: NonNegativeInt = field(default=5, metadata=_FREE)
    online_probe: bool = field(default=False, metadata=_FREE)


@dataclass(frozen=True)
class MachineOptions:
    """Machine.

    Args:
        num_workers: Processes that load images, on each device. Default: the number of processors,
            8 at most; 0 where augmentation and network share them.
        accelerator: Lightning's accelerator: auto, cpu, gpu and so on.
        devices: Number of devices on each node.
        num_nodes: Number of nodes.
        precision: Lightning's precision in training. auto chooses bf16-mixed where the device is
            faster at it, 16-mixed on other GPUs and 32-true elsewhere. Features, kNN and probes are
            computed in float32 in any case. (Weights in half precision are not offered: the
            momentum encoder would stand still.)
        sync_batchnorm: Whether BatchNorm uses the statistics of all devices' images, as in the
            authors' SimCLR, instead of each device's own. It has no effect on one device and needs
            GPUs on several.
        compile: Whether to compile networks and loss with torch.compile; needs a C++ compiler on a
            CPU, and minutes before the first step.
    """

    num_workers: NonNegativeInt | None = None
    accelerator: str = "auto"
    devices: PositiveInt = 1
    num_nodes: PositiveInt = 1
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "auto"
    sync_batchnorm: bool = False
    compile: bool = False

    @property
    def num_processes(self) -> int:
        """Number of processes that train together."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class RunOptions:
    """Run.

    Args:
        seed: Seed of weights, order, augmentations and mixtures.
        keep_every_n_epochs: Every how many epochs a checkpoint is kept for good, as
            checkpoints/epoch-0010.ckpt beside last.ckpt; 0 keeps only the last.
        logger: What records the metrics: csv, tensorboard, wandb or mlflow, one or several. csv,
            which is metrics.csv, is always one of them; the others need packages of their own.
        output_dir: Folder of the run.
        report: Whether to write report.html at the end: table, curves, mixtures, a map of the test
            images, neighbours and mistakes in one page.
        resume: Whether to continue the run in output_dir after its last finished epoch; every
            option that decides the result must be unchanged.
        overwrite: Whether to replace the run in output_dir.
    """

    seed: NonNegativeInt = 0
    keep_every_n_epochs: NonNegativeInt = field(default=0, metadata=_FREE)
    logger: list[LoggerName] = field(default_factory=lambda: ["csv"], metadata=_FREE)
    output_dir: str = field(default="runs/pretrain", metadata=_FREE)
    report: bool = field(default=True, metadata=_FREE)
    resume: bool = field(default=False, metadata=_COMMAND)
    overwrite: bool = field(default=False, metadata=_COMMAND)


# dataclasses order the fields from the last base to the first.
@dataclass(frozen=True)
class PretrainConfig(
    RunOptions,
    MachineOptions,
    MeasureOptions,
    OptimiserOptions,
    NetworkOptions,
    ViewOptions,
    DataOptions,
):
    """Options of a pretraining run."""


Config = TypeVar("Config", bound=PretrainConfig)


@dataclass(frozen=True)
class MixCoConfig(MixingOptions, PretrainConfig):
    """Options of a pretraining run with mixtures."""


def options_of_use(use: str) -> set[str]:
    """Returns the names of the options that are marked as "free" or "command"."""
    return {option.name for option in fields(PretrainConfig) if option.metadata.get("use") == use}
