import pickle
import traceback
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets.cifar
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import ToTensor

from mixco_lightly.data.catalogue import (
    create_dataset,
    create_train_test,
    find_dataset,
    get_dataset,
)
from mixco_lightly.data.images import ImageError, have_one_size, open_image


def save_image(path, grey=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def make_image_folder(root, splits=("train", "test"), classes=("cat", "dog"), images=2):
    """The grey value of an image tells split, class and index."""
    for s, split in enumerate(splits):
        for c, cls in enumerate(classes):
            for i in range(images):
                save_image(root / split / cls / f"{i}.png", 100 * s + 10 * c + i)
    return root


WNIDS = ["n03", "n01", "n02"]


def make_tiny_imagenet(root):
    """Two training images a class and four validation images in the official layout."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    for c, wnid in enumerate(sorted(WNIDS)):
        for i in range(2):
            save_image(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 50 * c, (64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    rows = []
    for i, wnid in enumerate(["n02", "n01", "n03", "n02"]):
        grey = 50 * sorted(WNIDS).index(wnid)
        save_image(root / "val" / "images" / f"val_{i}.JPEG", grey, (64, 64))
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return root


def grey_of(image):
    return image.getpixel((0, 0))[0]


def test_digits_have_the_stated_sizes_and_classes():
    train, test = create_train_test("digits", "unused")
    assert (len(train), len(test)) == (1348, 449)
    assert train.classes == test.classes == [str(digit) for digit in range(10)]
    for dataset in (train, test):
        assert set(dataset.targets) == set(range(10))
        image, target = dataset[0]
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert target == dataset.targets[0]


def test_digits_train_and_test_partition_the_embedded_images():
    from sklearn.datasets import load_digits

    original, original_targets = load_digits(return_X_y=True)
    expected = sorted(
        (*row.astype(int), t) for row, t in zip(original, original_targets, strict=True)
    )
    parts = []
    for dataset in create_train_test("digits", "unused"):
        for image, target in dataset:
            # Grey values 0..16 are stretched to 0..255.
            grey = np.rint(np.asarray(image)[..., 0] * (16 / 255)).astype(int)
            parts.append((*grey.ravel(), target))
    assert sorted(parts) == expected


def test_digits_statistics_are_those_of_the_training_images():
    images = create_dataset("digits", "unused", train=True).pixels / 255
    assert images.mean() == pytest.approx(get_dataset("digits").facts.mean[0], abs=0.002)
    # Images are used at 32 pixels: enlarging them lowers the standard deviation.
    enlarged = [
        np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))[..., 0] / 255
        for image, _ in create_dataset("digits", "unused", train=True)
    ]
    stds = sorted([images.std(), np.std(enlarged)])
    assert stds[0] - 0.005 < get_dataset("digits").facts.std[0] < stds[1] + 0.005


@pytest.mark.parametrize("name", ["digits", "imagefolder", "tiny-imagenet"])
@pytest.mark.parametrize("train", [True, False])
def test_transform_is_applied_to_the_image(name, train, tmp_path):
    make_image_folder(tmp_path)
    make_tiny_imagenet(tmp_path)
    dataset = create_dataset(name, tmp_path, train, transform=lambda image: ("seen", image.mode))
    assert dataset[0][0] == ("seen", "RGB")


@pytest.mark.parametrize("test_split", ["test", "val"])
def test_image_folder_reads_train_and_test_or_val(test_split, tmp_path):
    make_image_folder(tmp_path, ("train", test_split))
    train, test = create_train_test("imagefolder", tmp_path)
    for dataset, offset in [(train, 0), (test, 100)]:
        assert dataset.classes == ["cat", "dog"]
        content = [(grey_of(image), target) for image, target in dataset]
        assert content == [(offset + g, t) for g, t in [(0, 0), (1, 0), (10, 1), (11, 1)]]


def test_image_folder_prefers_test_to_val(tmp_path):
    make_image_folder(tmp_path, ("train", "val", "test"))
    assert grey_of(create_dataset("imagefolder", tmp_path, train=False)[0][0]) == 200


@pytest.mark.parametrize(
    ("present", "train", "missing"),
    [((), True, ["train"]), (("test",), True, ["train"]), (("train",), False, ["test", "val"])],
)
def test_missing_image_folder_split_names_the_paths(present, train, missing, tmp_path):
    make_image_folder(tmp_path, present)
    with pytest.raises(FileNotFoundError) as caught:
        create_dataset("imagefolder", tmp_path, train)
    for name in missing:
        assert str(tmp_path / name) in str(caught.value).split(":")[0]
    assert "CLASS/*.jpg" in str(caught.value)


def test_empty_class_folder_is_named(tmp_path):
    make_image_folder(tmp_path)
    (tmp_path / "train" / "emptiness").mkdir()
    with pytest.raises(FileNotFoundError, match="emptiness") as caught:
        create_dataset("imagefolder", tmp_path, train=True)
    assert str(tmp_path / "train") in str(caught.value)


def test_split_without_class_folders_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        create_dataset("imagefolder", tmp_path, train=True)
    assert str(tmp_path / "train") in str(caught.value)


def test_classes_that_differ_between_train_and_test_are_named(tmp_path):
    make_image_folder(tmp_path, ("train",), ("cat", "dog", "wolf"))
    make_image_folder(tmp_path, ("test",), ("cat", "dog", "fox"))
    with pytest.raises(ValueError, match=r"only one of the two has: fox, wolf\.") as caught:
        create_train_test("imagefolder", tmp_path)
    assert "cat" not in str(caught.value).split("has:")[1]


def test_train_and_test_have_transforms_of_their_own(tmp_path):
    make_image_folder(tmp_path)
    datasets = create_train_test("imagefolder", tmp_path, lambda _: "train", lambda _: "test")
    assert [dataset[0][0] for dataset in datasets] == ["train", "test"]


@pytest.mark.parametrize("parent", [False, True])
def test_tiny_imagenet_targets_agree_with_its_files(parent, tmp_path):
    make_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    root = tmp_path if parent else tmp_path / "tiny-imagenet-200"
    train, val = create_train_test("tiny-imagenet", root)
    assert train.classes == val.classes == ["n01", "n02", "n03"]
    assert train.targets == [0, 0, 1, 1, 2, 2]
    assert val.targets == [1, 0, 2, 1]
    for dataset in (train, val):
        assert len(dataset) == len(dataset.targets)
        for index, expected in enumerate(dataset.targets):
            image, target = dataset[index]
            assert target == expected
            assert grey_of(image) == pytest.approx(50 * target, abs=2)


@pytest.mark.parametrize(
    ("train", "damage", "named"),
    [
        (True, lambda root: (root / "wnids.txt").unlink(), "wnids.txt"),
        (
            False,
            lambda root: (root / "val" / "val_annotations.txt").unlink(),
            "val_annotations.txt",
        ),
        (True, lambda root: (root / "train").rename(root / "elsewhere"), "train"),
    ],
    ids=["wnids", "val_annotations", "train"],
)
def test_tiny_imagenet_names_what_is_missing(train, damage, named, tmp_path):
    root = make_tiny_imagenet(tmp_path)
    damage(root)
    with pytest.raises(FileNotFoundError) as caught:
        create_dataset("tiny-imagenet", root, train)
    assert str(root) in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("train", [True, False])
def test_tiny_imagenet_refuses_classes_outside_of_wnids(train, tmp_path):
    root = make_tiny_imagenet(tmp_path)
    (root / "wnids.txt").write_text("n01\nn03\n")
    with pytest.raises(ValueError, match=r"n02.*wnids\.txt"):
        create_dataset("tiny-imagenet", root, train)


def test_tiny_imagenet_names_an_annotated_image_that_is_missing(tmp_path):
    root = make_tiny_imagenet(tmp_path)
    path = root / "val" / "images" / "val_2.JPEG"
    path.unlink()
    dataset = create_dataset("tiny-imagenet", root, train=False)
    with pytest.raises(ImageError) as caught:
        dataset[2]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "archive", "folder"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python"),
    ],
)
def test_missing_cifar_says_what_is_expected(name, archive, folder, tmp_path, monkeypatch):
    def unplugged(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", unplugged)
    for download, hint in [(False, "--download"), (True, "no network")]:
        with pytest.raises(FileNotFoundError, match=hint) as caught:
            create_dataset(name, tmp_path, train=True, download=download)
        assert str(tmp_path / archive) in str(caught.value)
        assert str(tmp_path / folder) in str(caught.value)


@pytest.mark.parametrize(("name", "label"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar_is_opened_as_torchvision_opens_it(name, label, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)
    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = tmp_path / source.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(2, 3072), dtype=np.uint8)
    for file, _ in source.train_list + source.test_list:
        (folder / file).write_bytes(pickle.dumps({"data": pixels, label: [1, 0]}))
    meta = {source.meta["key"]: ["cat", "dog"]}
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(meta))
    assert find_dataset(tmp_path) == (name, source.base_folder)
    for train, images in zip((True, False), create_train_test(name, tmp_path), strict=True):
        assert have_one_size(images)
        assert images.classes == ["cat", "dog"]
        expected = source(str(tmp_path), train=train)
        assert len(images) == len(expected)
        for (image, target), (other, label_) in zip(images, expected, strict=True):
            assert (image.mode, image.tobytes(), target) == ("RGB", other.tobytes(), label_)


def test_cifar_is_only_downloaded_on_demand(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        torchvision.datasets.cifar,
        "download_and_extract_archive",
        lambda url, *args, **kwargs: calls.append(url),
    )
    for download in (False, True):
        with pytest.raises(FileNotFoundError):
            create_dataset("cifar10", tmp_path, train=True, download=download)
        assert len(calls) == download


@pytest.mark.parametrize(
    "create",
    [
        get_dataset,
        lambda name: create_dataset(name, ".", train=True),
        lambda name: create_train_test(name, "."),
    ],
)
def test_unknown_dataset_lists_the_names(create):
    with pytest.raises(ValueError, match="'imagenet'") as caught:
        create("imagenet")
    for name in ("digits", "cifar10", "cifar100", "tiny-imagenet", "imagefolder"):
        assert name in str(caught.value)


def truncate_jpeg(path):
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-1000])


def truncate_png(path):
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:500])


BREAKERS = {
    "truncated-jpeg": truncate_jpeg,
    "truncated-png": truncate_png,
    "text": lambda path: path.write_text("This is not an image."),
    "zero-bytes": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("breaker", BREAKERS.values(), ids=BREAKERS)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_image_is_named_also_by_a_worker(breaker, num_workers, tmp_path):
    make_image_folder(tmp_path)
    path = tmp_path / "train" / "dog" / "1.png"
    breaker(path)
    dataset = create_dataset("imagefolder", tmp_path, train=True, transform=ToTensor())
    with pytest.raises(ImageError) as caught:
        list(DataLoader(dataset, batch_size=2, num_workers=num_workers))
    # The traceback holds the loader, whose worker would be waited for 5 seconds at some later time.
    traceback.clear_frames(caught.tb)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("train", [True, False])
def test_broken_tiny_imagenet_image_is_named(train, tmp_path):
    root = make_tiny_imagenet(tmp_path)
    dataset = create_dataset("tiny-imagenet", root, train)
    path = root / ("train/n01/images/n01_0.JPEG" if train else "val/images/val_0.JPEG")
    truncate_jpeg(path)
    with pytest.raises(ImageError) as caught:
        dataset[0]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_colour_mode_opens_as_rgb(mode, tmp_path):
    path = tmp_path / "image.tiff"
    Image.new("RGB", (4, 6), "white").convert(mode).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (4, 6))
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_missing_image_is_an_image_error(tmp_path):
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "nowhere.png")
    assert str(tmp_path / "nowhere.png") in str(caught.value)
