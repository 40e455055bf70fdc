"""Hugging Face datasets: saved folders, parquet files, and what stands in for the Hub."""

import io
import json
import pickle
import shutil
import sys
from pathlib import Path

import datasets
import dill
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import PILToTensor

from mixco_lightly.data import (
    ImageError,
    broken_images,
    create_dataset,
    create_train_test,
    find_dataset,
    get_dataset,
    has_labels,
    have_one_size,
)
from mixco_lightly.data.image_stream import ImageStream
from tests.run_recipe import TINY

CLASSES = ["blue", "red"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder that datasets keeps converted files in."""
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    return tmp_path / "cache"


def pixels_of(split, index, size=8):
    """The image of a row."""
    rng = np.random.default_rng([len(split), index])
    return rng.integers(0, 256, (size, 8, 3), dtype=np.uint8)


def create_rows(split, count, sizes=(8,), **features):
    """A dataset whose labels are 0, 1, 0, 1, ..., with a column that a run has no use for."""
    pixels = [pixels_of(split, index, sizes[index % len(sizes)]) for index in range(count)]
    columns = {
        "image": [Image.fromarray(x) for x in pixels],
        "label": [index % 2 for index in range(count)],
        "caption": ["words"] * count,
    }
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    kinds |= {"caption": datasets.Value("string"), **features}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def save_both(root, save, names=("train", "test"), **options):
    """Saves six training and four test images by one of the layouts."""
    counts = dict(zip(names, (6, 4), strict=True))
    rows = {name: create_rows(name, count, **options) for name, count in counts.items()}
    if save == "dict":
        datasets.DatasetDict(rows).save_to_disk(root)
    elif save == "folders":
        for name in names:
            rows[name].save_to_disk(root / name)
    else:
        for name in names:
            path = root / save.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows[name].to_parquet(path)
    return root


LAYOUTS = {
    "saved DatasetDict": ("dict", "dataset_dict.json"),
    "saved Datasets": ("folders", "state.json"),
    "parquet files": ("{}.parquet", "train.parquet"),
    "the Hub's layout": ("data/{}-00000-of-00001.parquet", "train-00000-of-00001.parquet"),
}


@pytest.mark.parametrize(("save", "found"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("test_name", ["test", "validation"])
def test_each_layout_is_found_and_gives_the_saved_pixels_and_labels(
    save, found, test_name, tmp_path, monkeypatch, cache
):
    root = save_both(tmp_path / "set", save, ("train", test_name))

    def refuse(*_, **__):
        raise AssertionError("something is unpickled")

    for module in (pickle, dill):
        monkeypatch.setattr(module, "loads", refuse)
        monkeypatch.setattr(module, "load", refuse)
    assert find_dataset(root) == ("huggingface", found)
    assert has_labels("huggingface", root)
    parts = create_train_test("huggingface", root)
    for images, name, count in zip(parts, ("train", test_name), (6, 4), strict=True):
        assert images.classes == CLASSES
        assert images.targets == [index % 2 for index in range(count)]
        assert [target for _, target in images] == images.targets
        for index, (image, _) in enumerate(images):
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), pixels_of(name, index))
    assert cache.exists() == ("parquet" in save)  # nothing else is copied


def test_worker_processes_read_the_rows_and_a_pickled_dataset_is_the_same(tmp_path):
    root = save_both(tmp_path / "set", "dict")
    images = create_dataset("huggingface", root, True, PILToTensor())
    loader = DataLoader(images, batch_size=3, num_workers=1)
    read = [image for batch, _ in loader for image in batch]
    copy = pickle.loads(pickle.dumps(images))  # noqa: S301
    for index, (image, (other, _)) in enumerate(zip(read, copy, strict=True)):
        expected = pixels_of("train", index)
        assert np.array_equal(image.permute(1, 2, 0), expected)
        assert np.array_equal(other.permute(1, 2, 0), expected)


def test_images_of_one_size_are_decoded_once_and_again_after_a_change(tmp_path):
    root = save_both(tmp_path / "set", "dict")
    images = create_dataset("huggingface", root, True, keep_decoded=True)
    assert have_one_size(images)
    assert np.array_equal(images.pixels[5], pixels_of("train", 5))
    shutil.rmtree(root / "train")
    create_rows("other", 6).save_to_disk(root / "train")
    images = create_dataset("huggingface", root, True, keep_decoded=True)
    assert np.array_equal(images.pixels[5], pixels_of("other", 5))


def test_images_of_several_sizes_are_read_row_by_row(tmp_path):
    root = save_both(tmp_path / "set", "dict", sizes=(8, 9))
    images = create_dataset("huggingface", root, True, keep_decoded=True)
    assert not have_one_size(images)
    assert [image.size for image, _ in images] == [(8, 8), (8, 9)] * 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    image = Image.fromarray(pixels_of("train", 0)).convert(mode)
    datasets.Dataset.from_dict({"img": [image]}).save_to_disk(tmp_path / "set")
    assert find_dataset(tmp_path / "set") == ("huggingface", "state.json")
    ((read, target),) = create_dataset("huggingface", tmp_path / "set", True)
    assert target == 0
    assert np.array_equal(np.asarray(read), np.asarray(image.convert("RGB")))


def encode(index):
    file = io.BytesIO()
    Image.fromarray(pixels_of("train", index)).save(file, "PNG")
    return file.getvalue()


def save_bytes(root, rows, **columns):
    """Saves rows as they are, in the form in which datasets stores images."""
    kinds = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = {name: datasets.Value(kind) for name, (kind, _) in columns.items()}
    features["image"] = kinds
    values = {name: content for name, (_, content) in columns.items()}
    values["image"] = rows
    part = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    part.save_to_disk(root)
    return root


def test_broken_images_are_named_by_row_and_left_out_up_to_the_limit(tmp_path):
    rows = [{"bytes": encode(index), "path": None} for index in range(5)]
    rows[1]["bytes"] = b"no image"
    rows[3]["bytes"] = encode(3)[:100]
    root = save_bytes(tmp_path / "set", rows)
    images = create_dataset("huggingface", root, True)
    with pytest.raises(ImageError, match=r"image .*set/train row 1 cannot be opened") as raised:
        images[1]
    assert "BytesIO" not in str(raised.value)
    with pytest.raises(ImageError, match=r"More than 1 images of train .*max_broken_images"):
        create_dataset("huggingface", root, True, max_broken_images=1)
    images = create_dataset("huggingface", root, True, max_broken_images=2)
    assert list(broken_images(images)) == [f"{root}/train row {index}" for index in (1, 3)]
    read = [np.asarray(image) for image, _ in images]
    assert np.array_equal(read, [pixels_of("train", index) for index in (0, 2, 4)])
    assert create_dataset("huggingface", root, True, max_broken_images=2).broken == images.broken


def test_a_row_opens_no_file_outside_the_datasets_folders(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "private.png")
    root = tmp_path / "set"
    paths = [tmp_path / "private.png", root / ".." / "private.png", "http://localhost/a.png"]
    rows = [{"bytes": None, "path": str(path)} for path in [*paths, root / "a.png"]]
    save_bytes(root, [*rows, {"bytes": None, "path": None}])
    Image.new("RGB", (5, 4)).save(root / "a.png")
    images = create_dataset("huggingface", root, True)
    for index in range(3):
        with pytest.raises(ImageError, match=rf"row {index} .* has only a path, and .* is not in"):
            images[index]
    assert images[3][0].size == (5, 4)
    with pytest.raises(ImageError, match="row 4 cannot be opened: the row has none"):
        images[4]


def save_labels(root, kind, train, test, name="label"):
    for split, labels in (("train", train), ("test", test)):
        rows = [{"bytes": encode(index), "path": None} for index in range(len(labels))]
        save_bytes(root / split, rows, **{name: (kind, labels)})
    return root


@pytest.mark.parametrize(
    ("kind", "train", "test", "classes", "targets"),
    [
        ("int64", [7, 3, 7], [7, 7], ["3", "7"], ([1, 0, 1], [1, 1])),
        ("string", ["b", "a", "b"], ["a"], ["a", "b"], ([1, 0, 1], [0])),
        ("bool", [True, False], [True], ["False", "True"], ([1, 0], [1])),
    ],
)
def test_classes_without_names_are_the_sorted_labels_of_the_training_images(
    kind, train, test, classes, targets, tmp_path
):
    parts = create_train_test("huggingface", save_labels(tmp_path / "set", kind, train, test))
    assert [part.classes for part in parts] == [classes] * 2
    assert tuple(part.targets for part in parts) == targets


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, None], [1], "train row 2 has None as its label, which is none of the 2 classes"),
        ([0, 1], [1, 2], "test row 1 has 2 as its label, which is none of the 2 classes"),
    ],
)
def test_a_missing_or_new_label_is_named_by_its_row(train, test, message, tmp_path):
    root = save_labels(tmp_path / "set", "int64", train, test)
    with pytest.raises(ValueError, match=message):
        create_train_test("huggingface", root)


@pytest.mark.parametrize("hidden", [-1, None])
def test_a_test_split_whose_labels_are_hidden_gives_way_to_validation(hidden, tmp_path):
    root = save_both(tmp_path / "set", "folders", ("train", "validation"))
    create_rows("test", 4).remove_columns("label").add_column(
        "label", [hidden] * 4, feature=datasets.ClassLabel(names=CLASSES)
    ).save_to_disk(root / "test")
    test = create_dataset("huggingface", root, train=False)
    assert np.array_equal(np.asarray(test[1][0]), pixels_of("validation", 1))
    shutil.rmtree(root / "validation")
    assert not has_labels("huggingface", root)


def test_without_a_test_split_or_a_column_of_labels_there_are_training_images_alone(tmp_path):
    rows = create_rows("train", 6)
    rows.save_to_disk(tmp_path / "labelled")
    save_both(tmp_path / "plain", "dict")
    for name in ("train", "test"):
        part = datasets.load_from_disk(tmp_path / "plain" / name).remove_columns("label")
        part.save_to_disk(tmp_path / "bare" / name)
    rows.to_parquet(tmp_path / "files" / "a.parquet")
    for name in ("labelled", "bare", "files"):
        root = tmp_path / name
        assert not has_labels("huggingface", root)
        images = create_dataset("huggingface", root, True)
        assert (images.classes, images.targets) == ([], [0] * 6)
        assert np.array_equal(np.asarray(images[5][0]), pixels_of("train", 5))
        with pytest.raises(FileNotFoundError, match="no test images with labels in"):
            create_dataset("huggingface", root, False)
        with pytest.raises(FileNotFoundError, match="have no labels: expected a column of labels"):
            create_train_test("huggingface", root)


def test_columns_are_named_or_found_by_their_types_or_usual_names(tmp_path):
    names = datasets.ClassLabel(names=["x", "y"])
    picture = datasets.Image()
    values = [Image.fromarray(pixels_of("train", index)) for index in range(4)]
    columns = {"depth": values[::-1], "img": values, "coarse": [0, 0, 1, 1]}
    columns["fine_label"] = [0, 1, 0, 1]
    features = {"depth": picture, "img": picture, "coarse": names, "fine_label": names}
    part = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "set")
    spec = get_dataset("huggingface")
    images = create_dataset(spec, tmp_path / "set", True)
    assert images.targets == [0, 1, 0, 1]
    assert np.array_equal(np.asarray(images[0][0]), pixels_of("train", 0))
    named = spec.with_columns("depth", "coarse")
    assert has_labels(named, tmp_path / "set")
    images = create_dataset(named, tmp_path / "set", True)
    assert images.targets == [0, 0, 1, 1]
    assert np.array_equal(np.asarray(images[0][0]), pixels_of("train", 3))

    for image, label, message in [
        ("picture", None, r"image_column: there is no column 'picture'\. .* depth \(PIL"),
        ("img", "colour", r"label_column: there is no column 'colour'\. .*fine_label \(int64\)"),
        ("coarse", None, "image_column: the column 'coarse' does not hold images"),
        ("img", "depth", "label_column: the column 'depth' does not hold one label for each"),
    ]:
        with pytest.raises(ValueError, match=message):
            create_dataset(spec.with_columns(image, label), tmp_path / "set", True)
    for name, renamed, message in [
        ("img", "rgb", "No column is known to hold the images: name it by --image_column"),
        ("fine_label", "fine", "Several columns hold labels: name one by --label_column"),
    ]:
        part.rename_column(name, renamed).save_to_disk(tmp_path / renamed)
        with pytest.raises(ValueError, match=rf"{message}. The columns are .*{renamed}"):
            create_dataset(spec, tmp_path / renamed, True)
    with pytest.raises(ValueError, match="cifar10 has no columns: leave out --image_column"):
        get_dataset("cifar10").with_columns("img", None)


class Rows(IterableDataset):
    """Pairs of the rows of a streamed dataset."""

    splits_itself = True

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        for row in self.rows:
            yield row["image"], row["label"]


def test_a_streamed_dataset_shares_itself_out_to_worker_processes():
    rows = create_rows("train", 6).to_iterable_dataset(num_shards=2)
    stream = ImageStream(Rows(rows), PILToTensor())
    known = {pixels_of("train", index).tobytes(): index for index in range(6)}
    read = [
        (known[image[0].permute(1, 2, 0).numpy().tobytes()], int(target))
        for image, target in DataLoader(stream, batch_size=1, num_workers=2)
    ]
    assert sorted(read) == [(index, index % 2) for index in range(6)]


def test_a_run_finds_a_saved_folder_and_is_evaluated_by_its_recorded_columns(
    tmp_path, run_here, evaluate
):
    root, run = tmp_path / "set", tmp_path / "run"
    for name, count in (("train", 24), ("test", 12)):
        rows = create_rows(name, count, sizes=(16, 17)).rename_column("label", "colour")
        rows.add_column("label", list(range(count))).save_to_disk(root / name)
    options = ["--data_dir", root, "--image_size", 16, "--batch_size", 8, "--epochs", 1]
    options += ["--label_column", "colour", "--random_init", "false", "--protocol", "knn"]
    options += ["--knn_every_n_epochs", 1, "--memory_bank_size", 8, "--output_dir", run]
    code, printed, error = run_here("moco", *TINY, *options)
    assert code == 0, error
    assert "Found state.json in " in printed
    assert "moco on huggingface: 24 images of 16 pixels" in printed
    top1 = json.loads((run / "summary.json").read_text())["knn_top1"]
    quiet = ["--num_workers", 0, "--knn_k", 5, "--protocol", "knn"]
    code, _, error = evaluate("--backbone_dir", run, *quiet)
    assert code == 0, error
    (record,) = json.loads((run / "evaluation.json").read_text())["results"]
    assert (record["dataset"], record["top1"]) == ("huggingface", top1)


def test_the_name_of_a_dataset_on_the_hub_is_loaded_without_its_code(tmp_path, monkeypatch):
    calls = []

    def load(*arguments, **keywords):
        calls.append((arguments, keywords))
        return datasets.load_from_disk(tmp_path / "downloaded")

    save_both(tmp_path / "downloaded", "dict")
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    train, test = create_train_test("huggingface", "user/name-1.0")
    assert (len(train), len(test)) == (6, 4)
    assert np.array_equal(np.asarray(test[3][0]), pixels_of("test", 3))
    assert calls == [(("user/name-1.0",), {})] * len(calls)  # trust_remote_code is not among them
    assert len(calls) > 0

    def fail(*_):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FileNotFoundError, match=r"user/name is not a folder, .*Hub: no network"):
        create_dataset("huggingface", "user/name", True)


def test_a_folder_without_such_a_dataset_is_one_error_that_says_what_is_there(tmp_path):
    save_both(tmp_path / "other", "folders", ("left", "right"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.parquet").mkdir()
    for name in ("training.parquet", "test.parquet", ".train.parquet"):
        (tmp_path / "text" / name).write_bytes(b"PAR1")
    for place, message in [
        ("nowhere", "no Hugging Face dataset in .*nowhere: .*nowhere does not exist"),
        ("other", "no split train in .*other: it has left, right"),
        ("broken", "The dataset in .*broken cannot be loaded: "),
    ]:
        with pytest.raises(FileNotFoundError, match=message) as raised:
            create_dataset("huggingface", tmp_path / place, True)
        assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match="neither a dataset nor an image"):
        find_dataset(tmp_path / "text")


def test_a_missing_package_is_one_error_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'mixco-lightly\[huggingface\]'"):
        create_dataset("huggingface", Path("nowhere"), True)
