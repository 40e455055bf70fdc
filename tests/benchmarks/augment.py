"""Views per second of Lightly's transform, of torchvision's on tensors, and of whole batches.

    python tests/benchmarks/augment.py        one minute; on random images

    pillow   Lightly's transform on Pillow images, one by one, as in a worker of a DataLoader
    tensors  its steps on uint8 tensors, one by one: torchvision's v2 kernels, without the blur,
             which Lightly has for Pillow only
    batches  DeviceTransform on the batch

All arms have one thread, as a worker has; for a machine with n processors multiply by n.
"""

from __future__ import annotations

import torch
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.torchvision_v2_compatibility import ToTensor
from measure import median_seconds
from rich.console import Console
from rich.table import Table
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from mixco_lightly.data.catalogue import get_dataset
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.transforms import create_pretrain_transform

BATCH = 256
SETTINGS = [("digits", 8, 32), ("cifar10", 32, 32), ("tiny-imagenet", 64, 64)]


def measure(dataset: str, size: int, view_size: int) -> dict[str, float]:
    """Views per second of each arm."""
    images = torch.randint(256, (BATCH, 3, size, size), dtype=torch.uint8)
    transform = create_pretrain_transform("moco", get_dataset(dataset).facts, view_size)
    device_transform = DeviceTransform(transform)
    steps = transform.transforms[0].transform.transforms
    tensor_steps = [step for step in steps if not isinstance(step, (GaussianBlur, ToTensor))]
    tensor_steps.insert(-1, v2.ToDtype(torch.float32, scale=True))
    tensor_transform = v2.Compose(tensor_steps)
    some = images[:32]  # one by one the size of the batch does not matter
    pillow = [to_pil_image(image) for image in some]
    arms = {
        "pillow": lambda: [transform(image) for image in pillow],
        "tensors": lambda: [(tensor_transform(image), tensor_transform(image)) for image in some],
        "batches": lambda: device_transform(images),
    }
    seconds = median_seconds(arms, repeats=9)
    views = {"pillow": 2 * len(some), "tensors": 2 * len(some), "batches": 2 * BATCH}
    return {arm: views[arm] / seconds[arm] for arm in arms}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    table = Table(title=f"Views/s on one thread, MoCo's augmentation, batches of {BATCH}")
    for name in ["dataset", "image", "view", "pillow", "tensors", "batches", "batches/pillow"]:
        table.add_column(name, justify="right")
    for dataset, size, view_size in SETTINGS:
        rates = measure(dataset, size, view_size)
        cells = [f"{rate:,.0f}" for rate in rates.values()]
        ratio = f"{rates['batches'] / rates['pillow']:.1f}"
        table.add_row(dataset, str(size), str(view_size), *cells, ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
