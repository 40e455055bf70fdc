"""What a network is fed with: datasets, transforms, mixtures and collate functions."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.data.archive import ArchiveError as ArchiveError
    from mixco_lightly.data.batches import in_batches as in_batches
    from mixco_lightly.data.catalogue import (
        DATASETS as DATASETS,
        create_dataset as create_dataset,
        create_train_test as create_train_test,
        find_dataset as find_dataset,
        get_dataset as get_dataset,
        has_labels as has_labels,
    )
    from mixco_lightly.data.collate import MixCoCollate as MixCoCollate, MixCollate as MixCollate
    from mixco_lightly.data.device_transforms import DeviceTransform as DeviceTransform
    from mixco_lightly.data.image_files import ImageFiles as ImageFiles
    from mixco_lightly.data.images import (
        DatasetSpec as DatasetSpec,
        ImageArray as ImageArray,
        ImageError as ImageError,
        ImageFacts as ImageFacts,
        LabelledImages as LabelledImages,
        broken_images as broken_images,
        have_one_size as have_one_size,
        open_image as open_image,
    )
    from mixco_lightly.data.mixers import Mixer as Mixer
    from mixco_lightly.data.mixing import (
        cut_views as cut_views,
        cutmix as cutmix,
        mask_mix as mask_mix,
        mixup as mixup,
        mixup_or_cutmix as mixup_or_cutmix,
        pair_halves as pair_halves,
        pair_permuted as pair_permuted,
        pair_reversed as pair_reversed,
    )
    from mixco_lightly.data.mixture import (
        Mixture as Mixture,
        beta_weights as beta_weights,
        mix_pairs as mix_pairs,
    )
    from mixco_lightly.data.own_dataset import OwnImages as OwnImages
    from mixco_lightly.data.own_transform import create_own_transform as create_own_transform
    from mixco_lightly.data.subset import choose_part as choose_part
    from mixco_lightly.data.transforms import (
        create_pretrain_transform as create_pretrain_transform,
        create_probe_transform as create_probe_transform,
        create_test_transform as create_test_transform,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    archive="ArchiveError",
    batches="in_batches",
    catalogue="DATASETS create_dataset create_train_test find_dataset get_dataset has_labels",
    collate="MixCoCollate MixCollate",
    device_transforms="DeviceTransform",
    image_files="ImageFiles",
    images=(
        "DatasetSpec ImageArray ImageError ImageFacts LabelledImages "
        "broken_images have_one_size open_image"
    ),
    mixers="Mixer",
    mixing=(
        "cut_views cutmix mask_mix mixup mixup_or_cutmix pair_halves pair_permuted pair_reversed"
    ),
    mixture="Mixture beta_weights mix_pairs",
    own_dataset="OwnImages",
    own_transform="create_own_transform",
    subset="choose_part",
    transforms="create_pretrain_transform create_probe_transform create_test_transform",
)
