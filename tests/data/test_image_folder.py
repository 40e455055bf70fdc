"""Folders of images with labels and without, and which dataset a folder has."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

from mixco_lightly.data.catalogue import (
    DATASETS,
    create_dataset,
    create_train_test,
    find_dataset,
    has_labels,
)
from mixco_lightly.data.image_folder import Splits, find_splits
from mixco_lightly.data.images import ImageError, broken_images, have_one_size


def save_images(root, *paths, size=(8, 8)):
    """Saves images of rising grey values."""
    for grey, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (grey, grey, grey)).save(file)
    return root


FLAT = ["b.png", "a.png", "c.png"]
NESTED = ["2021/05/a.png", "2021/06/a.png", "2022/a.png", "b.png"]
CLASSES = ["cat/a.png", "dog/a.png"]


def splits(**folders):
    return [f"{split}/{path}" for split, paths in folders.items() for path in paths]


@pytest.mark.parametrize(
    ("paths", "train", "test"),
    [
        (FLAT, "", None),
        (NESTED, "", None),
        (CLASSES, "", None),
        (splits(train=FLAT), "train", None),
        (splits(train=CLASSES), "train", None),
        (splits(train=FLAT, test=FLAT), "train", None),
        (splits(train=FLAT, test=CLASSES), "train", None),
        (splits(train=CLASSES, test=FLAT), "train", None),
        (splits(train=CLASSES, test=CLASSES), "train", "test"),
        (splits(train=CLASSES, val=CLASSES), "train", "val"),
        (splits(train=CLASSES, test=CLASSES, val=CLASSES), "train", "test"),
        (splits(train=CLASSES, test=FLAT, val=CLASSES), "train", "val"),
    ],
)
def test_labels_are_the_folders_of_train_beside_those_of_test_or_val(paths, train, test, tmp_path):
    save_images(tmp_path, *paths)
    assert find_splits(tmp_path) == Splits(tmp_path / train, test and tmp_path / test)
    assert has_labels("imagefolder", tmp_path) == (test is not None)
    images = create_dataset("imagefolder", tmp_path, train=True)
    if test is None:
        expected = [str(tmp_path / path) for path in sorted(paths) if path.startswith(train)]
        assert sorted(path for path, _ in images.samples) == expected
        assert images.classes == []
        assert set(images.targets) == {0}
    else:
        assert images.classes == ["cat", "dog"]
        assert images.targets == [0, 1]


def test_images_without_labels_are_in_an_order_of_their_own_and_hidden_ones_are_left_out(tmp_path):
    hidden = [".thumbnails/a.png", "2021/._a.png", ".b.png"]
    save_images(tmp_path, *FLAT, "2021/z.PNG", *hidden)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "2021" / "back").symlink_to(tmp_path)  # a loop
    images = create_dataset("imagefolder", tmp_path, train=True, transform=ToTensor())
    names = [os.path.relpath(path, tmp_path) for path, _ in images.samples]
    assert names == ["a.png", "b.png", "c.png", "2021/z.PNG"]
    pixels, targets = next(iter(DataLoader(images, batch_size=4)))
    assert (pixels[:, 0, 0, 0] * 255).round().tolist() == [1, 0, 2, 3]
    assert targets.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("paths", [FLAT, splits(train=NESTED)])
def test_images_without_labels_are_decoded_once_and_those_that_are_broken_left_out(paths, tmp_path):
    def opened(limit=0, keep_decoded=False):
        return create_dataset(
            *("imagefolder", tmp_path, True, ToTensor()),
            keep_decoded=keep_decoded,
            max_broken_images=limit,
        )

    save_images(tmp_path, *paths)
    whole, decoded = opened(), opened(keep_decoded=True)
    assert not have_one_size(whole)
    assert have_one_size(decoded)
    assert decoded.classes == []
    assert all(torch.equal(x[0], y[0]) for x, y in zip(whole, decoded, strict=True))

    (tmp_path / paths[0]).write_bytes(b"")
    with pytest.raises(ImageError, match=paths[0]):
        opened(keep_decoded=True)
    part = opened(1, keep_decoded=True)
    assert list(broken_images(part)) == [str(tmp_path / paths[0])]
    assert len(part) == len(part.targets) == len(paths) - 1
    for path in paths:
        (tmp_path / path).write_bytes(b"")
    with pytest.raises(ImageError, match=rf"Every image in {tmp_path} is broken\. .*png"):
        opened(len(paths))


def test_images_without_labels_of_several_sizes_are_not_decoded_into_one_array(tmp_path):
    save_images(tmp_path, "a.png", size=(8, 9))
    save_images(tmp_path, "b.png", size=(9, 8))
    images = create_dataset("imagefolder", tmp_path, True, np.shape, keep_decoded=True)
    assert not have_one_size(images)
    assert len(images) == 2


def test_images_without_labels_have_no_test_images_and_the_error_says_what_was_found(tmp_path):
    save_images(tmp_path, *FLAT)
    with pytest.raises(FileNotFoundError, match=r"test or .*val: .* has a\.png, b\.png, c\.png"):
        create_dataset("imagefolder", tmp_path, train=False)
    with pytest.raises(FileNotFoundError, match=r"have no labels: .* has a\.png, b\.png"):
        create_train_test("imagefolder", tmp_path)


@pytest.mark.parametrize(
    ("name", "paths", "found"),
    [
        ("imagefolder", ["train/notes.txt"], "train has notes.txt"),
        ("imagefolder", ["test/cat/0.png"], " has test"),
        ("imagefolder", [*"abcdef"], " has a, b, c, d, e, ..."),
        ("imagefolder", [], " is empty"),
        ("cifar10", ["cifar-100-python/train"], " has cifar-100-python"),
        ("cifar10", ["cifar-10-batches-py/data_batch_1"], "cifar-10-batches-py is incomplete"),
        ("tiny-imagenet", ["tiny-imagenet-200.zip"], " has tiny-imagenet-200.zip"),
    ],
)
def test_an_error_says_what_was_looked_for_and_what_was_found(name, paths, found, tmp_path):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        create_dataset(name, tmp_path, train=True)
    assert str(tmp_path) in str(caught.value)
    assert found in str(caught.value)
    assert "Set --data_dir" not in str(caught.value)


def test_an_error_says_that_the_folder_does_not_exist(tmp_path):
    for name in ("imagefolder", "cifar100", "tiny-imagenet"):
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            create_dataset(name, tmp_path / "nowhere", train=True)


LAYOUTS = {
    "cifar10": ["cifar-10-batches-py/data_batch_1"],
    "cifar100": ["cifar-100-python/train"],
    "tiny-imagenet": ["wnids.txt", "train/n01/images/n01_0.JPEG"],
    "tiny-imagenet below": [
        "tiny-imagenet-200/wnids.txt",
        "tiny-imagenet-200/val/images/val_0.JPEG",
    ],
    "imagefolder": ["2021/05/a.webp", "notes.txt"],
    "imagefolder with labels": ["train/cat/a.jpg", "val/cat/a.jpg"],
}


def make_layout(root, *names):
    for name in names:
        for path in LAYOUTS[name]:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(b"")
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_s_layout_says_which_dataset_it_has(layout, tmp_path):
    assert find_dataset(make_layout(tmp_path, layout))[0] == layout.split()[0]


def test_the_official_archive_is_tiny_imagenet_and_another_file_is_an_error(tmp_path):
    assert find_dataset(tmp_path / "tiny-imagenet-200.zip")[0] == "tiny-imagenet"
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"images\.zip is a file"):
        find_dataset(tmp_path / "images.zip")


@pytest.mark.parametrize(
    "layouts",
    [
        ("cifar10", "cifar100"),
        ("cifar10", "imagefolder"),
        ("cifar100", "tiny-imagenet below"),
        ("tiny-imagenet below", "imagefolder"),
        (),
    ],
)
def test_a_folder_with_several_datasets_or_none_is_an_error_that_lists_the_choices(
    layouts, tmp_path
):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        find_dataset(make_layout(tmp_path, *layouts))
    message = str(caught.value)
    assert str(tmp_path) in message
    assert f"--dataset, one of: {', '.join(DATASETS)}" in message
    for layout in layouts:
        assert f"{layout.split()[0]} (" in message
