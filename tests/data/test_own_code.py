"""Datasets and transforms of the user's own, named as FILE.py:FUNCTION or MODULE:FUNCTION."""

import functools
import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import PILToTensor

from mixco_lightly.data import (
    ImageArray,
    ImageError,
    OwnImages,
    create_dataset,
    create_own_transform,
    create_train_test,
    get_dataset,
    has_labels,
    have_one_size,
)
from mixco_lightly.data.own_code import load_function, name_function


class Items:
    """A map-style dataset that counts what is read of it."""

    def __init__(self, items, **attributes):
        self.items = items
        self.reads = 0
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.reads += 1
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


def picture(value=0, mode="RGB", size=(4, 4)):
    return Image.new("RGB", size, (value, 0, 0)).convert(mode)


def labelled(*labels):
    return [(picture(index), label) for index, label in enumerate(labels)]


@pytest.fixture
def name(monkeypatch):
    """Names a function that returns a value for train=True and another for train=False."""
    monkeypatch.setattr("mixco_lightly.data.own_code._FUNCTIONS", {})

    def register(train, test=None):
        def create(data_dir, is_train):
            assert isinstance(data_dir, Path)
            return train if is_train else test

        return name_function(create)

    return register


@pytest.mark.parametrize(
    ("items", "attributes", "classes", "targets"),
    [
        (labelled(1, 0, 1), {"classes": ["a", "b"]}, ["a", "b"], [1, 0, 1]),
        (labelled(0, 0), {"classes": ["a", "b"]}, ["a", "b"], [0, 0]),
        (labelled(7, 3, 7), {}, ["3", "7"], [1, 0, 1]),
        (labelled("b", "a"), {}, ["a", "b"], [1, 0]),
        (labelled("b", "a"), {"classes": ["b", "a"]}, ["b", "a"], [0, 1]),
        (labelled(torch.tensor(5), np.int64(2)), {}, ["2", "5"], [1, 0]),
        ([(picture(), 1, "a.png"), [picture(), 0]], {}, ["0", "1"], [1, 0]),
        ([picture(), picture()], {}, [], [0, 0]),
        ([(picture(), None)] * 2, {}, [], [0, 0]),
    ],
)
def test_labels_and_classes_are_those_of_the_items(items, attributes, classes, targets):
    images = OwnImages(Items(items, **attributes), "mine")
    assert (images.classes, images.targets) == (classes, targets)
    assert [target for _, target in images] == targets


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_targets_of_the_dataset_spare_reading_its_items(kind):
    items = Items(labelled(1, 0, 1), targets=kind([1, 0, 1]))
    assert OwnImages(items, "mine").targets == [1, 0, 1]
    assert items.reads == 1
    plain = Items(labelled(1, 0, 1))
    assert OwnImages(Subset(plain, [0, 2]), "mine").targets == [0, 0]
    assert plain.reads == 3  # the first item and both labels


def test_every_mode_becomes_rgb_and_sizes_may_differ():
    items = [picture(9, mode, (4, 5 + at)) for at, mode in enumerate(["L", "RGBA", "P", "RGB"])]
    read = [image for image, _ in OwnImages(items, "mine")]
    assert [image.mode for image in read] == ["RGB"] * 4
    assert [image.size for image in read] == [(4, 5), (4, 6), (4, 7), (4, 8)]
    assert np.array_equal(np.asarray(read[3]), np.asarray(items[3]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"returned None for train=True"),
        (5, "returned of type int: expected a dataset with len"),
        (iter([]), "expected a dataset with len"),
        (Items([]), "returned a dataset without items"),
        (Items([torch.rand(3, 4, 4)]), "Item 0 of .* is of type Tensor: expected a PIL image"),
        (Items([(torch.rand(3, 4, 4), 0)]), "Item 0 of .* is a tuple of Tensor, int: expected"),
        (Items([{"image": picture()}]), "Item 0 of .* is of type dict"),
        (Items([()]), "Item 0 of .* is a tuple of 0"),
        (Items([*labelled(0), 3]), "Item 1 of .* is of type int"),
        (Items([OSError("gone\naway")]), "Item 0 of .* cannot be opened: gone away"),
        (Items(labelled(0.5)), "has labels of type float: expected whole numbers, or texts"),
        (Items(labelled(0, "a")), "has labels of type int, str"),
        (Items(labelled(0, None)), "has labels of type NoneType, int"),
        (Items(labelled(0, 2), classes=["a", "b"]), "has the label 2, .* none of its 2 classes"),
        (Items(labelled(-1, 0), classes=["a", "b"]), "has the label -1, .* none of its 2 classes"),
        (Items(labelled(0, 1), targets=[0]), "has 1 targets for 2 items"),
    ],
)
def test_what_is_no_dataset_of_images_is_one_error_that_says_what_it_is(value, message, name):
    with pytest.raises((ValueError, OSError), match=message) as raised:
        create_dataset(name(value), "data", True)
    assert "\n" not in str(raised.value)


def test_an_item_that_breaks_later_is_an_image_error_that_names_it(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"")
    picture(size=(64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    lazy = Image.open(tmp_path / "cut.png")
    items = [(picture(), 0), (lazy, 1), OSError(), (None, 0)]
    images = OwnImages(Items(items, targets=[0, 1, 0, 0]), "mine")
    for index, message in [
        (1, "Item 1 of mine cannot be opened: .*truncated|Item 1 of mine .*file"),
        (2, "Item 2 of mine cannot be opened: OSError"),
        (3, "Item 3 of mine is a tuple of NoneType, int: expected"),
    ]:
        with pytest.raises(ImageError, match=message):
            images[index]


def test_train_and_test_images_are_opened_once_and_have_the_same_classes(name):
    calls = []

    def create(data_dir, train):
        calls.append((data_dir, train))
        return Items(labelled("b", "a") if train else labelled("a", "b", "a"))

    spec = get_dataset(name_function(create))
    assert has_labels(spec, "place")
    train, test = create_train_test(spec, "place", PILToTensor())
    assert calls == [(Path("place"), True), (Path("place"), False)]
    assert (train.targets, test.targets) == ([1, 0], [0, 1, 0])
    assert train[1][0].shape == (3, 4, 4)
    assert create_dataset(spec, "place", True)[0][0].size == (4, 4)  # without the transform

    with pytest.raises(ValueError, match="have different classes; only one of the two has: b"):
        create_train_test(name(Items(labelled("a", "b")), Items(labelled("a"))), "place")


def test_without_labels_or_test_images_there_are_training_images_alone(name):
    for train, test in [([picture()] * 2, [picture()]), (labelled(0, 1), None)]:
        spec = get_dataset(name(train, test))
        assert not has_labels(spec, "place")
        assert len(create_dataset(spec, "place", True)) == 2
    with pytest.raises(FileNotFoundError, match="returned None for train=False: there are no"):
        create_dataset(spec, "place", False)
    bare = name([picture()] * 2)
    with pytest.raises(FileNotFoundError, match=r"expected tuples \(image, label\) from .*create"):
        create_train_test(bare, "place")


def test_an_image_array_stays_one_array(name):
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    images = create_dataset(name(ImageArray(pixels, [0, 1], ["a", "b"])), "place", True)
    assert have_one_size(images)


FILE = """
import json
import my_helper
from PIL import Image

runs = 0


class Mine:
    classes = ["a", "b"]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Image.new("RGB", (4, 4), (index, 0, 0)), index % 2


def create(data_dir, train):
    global runs
    runs += 1
    my_helper.calls.append(str(data_dir))
    return Mine()


def fail(data_dir, train):
    return json.loads("{")


constant = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with my_own.py, which imports a file beside it."""
    (tmp_path / "my_own.py").write_text(FILE)
    (tmp_path / "my_helper.py").write_text("calls = []\n")
    (tmp_path / "broken_own.py").write_text("x = 1\ny = x / 0\n")
    (tmp_path / "wrong_own.py").write_text("def create(:\n")
    (tmp_path / "missing_own.py").write_text("import no_such_package\n")
    (tmp_path / "json.py").write_text("raise AssertionError('this is not the json of Python')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x])
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        del sys.modules[module]


@pytest.mark.parametrize("place", ["my_own.py", "./my_own.py", "my_own"])
def test_a_file_and_a_module_of_the_current_folder_are_run_once_and_read_by_workers(place, folder):
    images = create_dataset(f"{place}:create", "place", True, PILToTensor())
    module = sys.modules[load_function(f"{place}:create").__module__]
    assert module.runs == 1
    assert sys.modules["my_helper"].calls == ["place"]
    assert sys.path[-1] == str(folder)
    assert module.json is json  # what is installed comes before the files of the folder
    loader = DataLoader(images, batch_size=2, num_workers=1, multiprocessing_context="fork")
    read = torch.cat([batch[:, 0, 0, 0] for batch, _ in loader])
    assert read.tolist() == [0, 1, 2, 3]
    assert pickle.dumps(images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my_own.py:", "'my_own.py:' names no function: expected FILE.py:FUNCTION or MODULE"),
        (":create", "names no function"),
        ("a: b: c", "names no function"),
        ("..x:create", "names no function"),
        ("my_own.py:no_such", r"my_own\.py:no_such: .*my_own\.py has no function no_such"),
        ("my_own.py:constant", r"my_own\.py:constant: .* has, but not as a function, constant"),
        ("my_own:Mine.no", r"my_own\.py has no function Mine\.no"),
        ("nowhere.py:create", r"There is no file .*nowhere\.py"),
        ("nowhere:create", "There is no module nowhere, neither installed nor in .*"),
        ("my_own.inner:create", "my_own.inner cannot be imported|There is no module my_own.inner"),
        ("broken_own.py:create", r"broken_own\.py, line 2: ZeroDivisionError: division by zero"),
        ("broken_own:create", r"broken_own\.py, line 2: ZeroDivisionError: division by zero"),
        ("wrong_own.py:create", r"cannot be loaded: SyntaxError: .*wrong_own\.py, line 1"),
        ("missing_own:create", "line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("missing_own.py:create", "line 1: ModuleNotFoundError: No module named"),
        ("my_own.py:fail", r"my_own\.py:fail failed in .*my_own\.py, line 27: JSONDecodeError"),
        ("my_own.py:Mine", r"my_own\.py:Mine failed: TypeError: Mine\(\) takes no arguments"),
    ],
)
def test_a_function_that_cannot_be_loaded_or_called_is_one_error(text, message, folder):
    with pytest.raises(ValueError, match=message) as raised:
        create_dataset(text, "place", True)
    assert "\n" not in str(raised.value)


def test_a_missing_file_of_the_users_data_is_an_error_of_its_own(name):
    def create(data_dir, train):
        raise FileNotFoundError(f"no data in {data_dir}")

    with pytest.raises(FileNotFoundError, match=r"^no data in place$"):
        create_dataset(name_function(create), "place", True)


def test_a_function_given_as_an_object_is_found_by_its_name_and_others_are_refused(name):
    def create(data_dir, train):
        return None

    text = name_function(create)
    assert text.startswith(f"{Path(__file__).resolve()}:")
    assert load_function(text) is create
    assert load_function(name_function(Items)) is Items
    for value in (functools.partial(create), lambda data_dir, train: None, 3):
        with pytest.raises(ValueError, match="Expected a function with a name, or a class, got"):
            name_function(value)


FACTS = get_dataset("cifar10").facts


@pytest.fixture
def transform_name(monkeypatch):
    """Names a function for transforms."""
    monkeypatch.setattr("mixco_lightly.data.own_code._FUNCTIONS", {})
    return name_function


def views(image, count=2, size=16):
    return [torch.zeros(3, size, size)] * count


def test_a_factory_is_given_what_it_asks_for(transform_name):
    given = []

    def ours(image_size, mean, std, num_views):
        given.append((image_size, mean, std, num_views))
        return views

    def lightlys(input_size=224, normalize=None, cj_prob=0.8):
        given.append((input_size, normalize, cj_prob))
        return views

    def nothing():
        return views

    for create in (ours, lightlys, nothing):
        assert create_own_transform(transform_name(create), FACTS, 16) is views
    mean, std = list(FACTS.mean), list(FACTS.std)
    assert given == [(16, mean, std, 2), (16, {"mean": mean, "std": std}, 0.8)]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda image: torch.zeros(3, 16, 16), r"made float32 \(3, 16, 16\): expected a list of 2"),
        (functools.partial(views, count=1), r"made a list of float32 \(3, 16, 16\): expected"),
        (functools.partial(views, count=3), "expected a list of 2 tensors"),
        (functools.partial(views, size=8), r"\(3, 8, 8\): expected .* \(3, 16, 16\)"),
        (lambda image: [image, image], "made a list of Image, Image: expected"),
        (lambda image: None, "made None: expected"),
        (lambda image: [torch.zeros(3, 16, 16).byte()] * 2, r"made a list of uint8 \(3"),
        (lambda image: image.no, "failed in .*, line .*: AttributeError"),
        ([3], "returned a list of int: expected a callable that makes a list of 2 tensors"),
    ],
)
def test_what_is_no_transform_to_views_is_one_error(made, message, transform_name):
    def create():
        return made

    with pytest.raises(ValueError, match=message):
        create_own_transform(transform_name(create), FACTS, 16)


def test_a_factory_that_needs_something_else_is_one_error(transform_name):
    def create(image_size, strength):
        return views

    with pytest.raises(ValueError, match=r"failed: TypeError: .*'strength'"):
        create_own_transform(transform_name(create), FACTS, 16)


def test_the_trial_of_a_transform_draws_no_random_number_of_the_run():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    transform = create_own_transform("lightly.transforms:SimCLRTransform", FACTS, 16)
    assert torch.rand(1) == expected
    (normalize,) = [
        step
        for step in transform.transforms[0].transform.transforms
        if type(step).__name__ == "Normalize"
    ]
    assert list(normalize.mean) == list(FACTS.mean)
    assert isinstance(transform, types.SimpleNamespace) is False
