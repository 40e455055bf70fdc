"""Images taken out of their array a batch at a time: the samples are those of one by one."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    PILToTensor,
    Resize,
    ToTensor,
)

from mixco_lightly.data.batches import PixelBatches, in_batches
from mixco_lightly.data.catalogue import create_dataset, get_dataset
from mixco_lightly.data.images import ImageArray
from mixco_lightly.data.transforms import create_pretrain_transform, create_test_transform

SIZE = 8


def pixels(n):
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(n, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def decoded(tmp_path):
    for split in ("train", "test"):
        for index, image in enumerate(pixels(7)):
            path = tmp_path / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return create_dataset("imagefolder", tmp_path, train=True, keep_decoded=True)


@pytest.fixture(params=["decoded", "colour", "grey"])
def images(request):
    if request.param == "decoded":
        return request.getfixturevalue("decoded")
    if request.param == "colour":
        return ImageArray(pixels(7), range(7), list("abcdefg"))
    return create_dataset("digits", "", train=True)


@pytest.mark.parametrize(
    "transform", [PILToTensor(), create_test_transform(get_dataset("cifar10").facts, SIZE)]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_of_samples_one_by_one(images, transform, workers):
    images.transform = transform
    chosen = [6, 0, 3, 3, 5]
    fast = in_batches(images)
    assert isinstance(fast, PixelBatches)
    assert len(fast) == len(images)
    options = {"batch_size": 3, "num_workers": workers}
    expected = list(DataLoader(Subset(images, chosen)))
    batches = list(DataLoader(Subset(fast, chosen), **options))
    assert [len(targets) for _, targets in batches] == [3, 2]
    for part in (0, 1):
        one_by_one = torch.cat([sample[part] for sample in expected])
        in_batches_ = torch.cat([batch[part] for batch in batches])
        assert torch.equal(in_batches_, one_by_one)
        assert in_batches_.dtype == one_by_one.dtype
        assert in_batches_.stride() == one_by_one.stride()


def test_one_sample_is_that_of_the_images(images):
    images.transform = PILToTensor()
    image, target = in_batches(images)[4]
    assert torch.equal(image, images[4][0])
    assert target == images[4][1]


def test_a_batch_may_be_changed_without_changing_the_images(images):
    images.transform = PILToTensor()
    before = images[2][0].clone()
    for image, _ in in_batches(images).__getitems__([2, 3]):
        image.zero_()
    assert torch.equal(images[2][0], before)


@pytest.mark.parametrize(
    "transform",
    [
        None,
        create_test_transform(get_dataset("cifar10").facts, 2 * SIZE),
        create_test_transform(get_dataset("cifar10").facts, 72),  # resized to 82 before the crop
        Compose([Resize(SIZE), CenterCrop(SIZE - 2), ToTensor(), Normalize((0.5,), (0.5,))]),
        create_pretrain_transform("moco", get_dataset("cifar10").facts, SIZE),
    ],
)
def test_images_that_need_pillow_are_left_as_they_are(images, transform):
    images.transform = transform
    assert in_batches(images) is images


def test_images_of_a_folder_that_are_not_decoded_are_left_as_they_are(decoded, tmp_path):
    images = create_dataset("imagefolder", tmp_path, train=True, transform=PILToTensor())
    assert in_batches(images) is images


@pytest.mark.parametrize(
    "transform", [PILToTensor(), create_test_transform(get_dataset("cifar10").facts, SIZE)]
)
def test_batches_go_to_workers_that_are_spawned(images, transform):
    images.transform = transform
    fast = in_batches(images)
    (image, _), (again, _) = fast[1], pickle.loads(pickle.dumps(fast))[1]  # noqa: S301
    assert torch.equal(image, again)
