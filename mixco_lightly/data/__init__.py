"""What is fed to a network: mixtures, collate functions, transforms, datasets."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.data.collate import MixCoCollate as MixCoCollate
    from mixco_lightly.data.datasets import (
        create_dataset as create_dataset,
        create_train_test as create_train_test,
    )
    from mixco_lightly.data.device_transforms import DeviceTransform as DeviceTransform
    from mixco_lightly.data.mixture import Mixture as Mixture, mix_pairs as mix_pairs
    from mixco_lightly.data.transforms import (
        create_pretrain_transform as create_pretrain_transform,
        create_probe_transform as create_probe_transform,
        create_test_transform as create_test_transform,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    collate="MixCoCollate",
    datasets="create_dataset create_train_test",
    device_transforms="DeviceTransform",
    mixture="Mixture mix_pairs",
    transforms="create_pretrain_transform create_probe_transform create_test_transform",
)
