"""A new dataset is one spec in the catalogue: nothing else has to know its name."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mixco_lightly.data import (
    DATASETS,
    DatasetSpec,
    ImageArray,
    ImageFacts,
    ImageFiles,
    broken_images,
    create_dataset,
    create_pretrain_transform,
    create_probe_transform,
    create_test_transform,
    create_train_test,
    find_dataset,
    get_dataset,
    has_labels,
    have_one_size,
    in_batches,
)
from mixco_lightly.data.batches import PixelBatches
from tests.run_recipe import RECIPES, TINY, Program

# A user's file.
SHAPES = """
import numpy as np
from mixco_lightly.data import DATASETS, DatasetSpec, ImageArray, ImageFacts


def open_shapes(root, *, train, download):
    pixels = np.load(root / "shapes-1" / ("train.npy" if train else "test.npy"))
    return ImageArray(pixels, [i % 2 for i in range(len(pixels))], ["bar", "dot"])


FACTS = ImageFacts(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), can_flip=False, min_scale=0.7)
SPEC = DatasetSpec(
    "shapes", FACTS, open_shapes, image_size=16, backbone="test_resnet", stem="timm",
    folder="shapes-1",
)
DATASETS[SPEC.name] = SPEC
"""


def save_shapes(root):
    (root / "shapes-1").mkdir()
    rng = np.random.default_rng(0)
    for name, count in [("train", 20), ("test", 10)]:
        pixels = rng.integers(256, size=(count, 16, 16, 3), dtype=np.uint8)
        np.save(root / "shapes-1" / f"{name}.npy", pixels)
    return root


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    monkeypatch.delitem(DATASETS, "shapes", raising=False)  # and so it is removed afterwards
    exec(SHAPES, {})  # noqa: S102
    yield save_shapes(tmp_path)
    DATASETS.pop("shapes", None)


def test_a_new_dataset_is_found_and_opened_by_name(shapes):
    assert find_dataset(shapes) == ("shapes", "shapes-1")
    assert has_labels("shapes", shapes)
    facts = get_dataset("shapes").facts
    train, test = create_train_test("shapes", shapes, create_test_transform(facts, 16))
    assert (len(train), len(test)) == (20, 10)
    assert have_one_size(train)
    assert isinstance(in_batches(train), PixelBatches)
    pixels = torch.from_numpy(train.pixels).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (facts.mean, facts.std))
    images, targets = next(iter(DataLoader(in_batches(train), batch_size=20)))
    torch.testing.assert_close(images, (pixels - mean) / std)
    assert targets.tolist() == [0, 1] * 10
    with pytest.raises(ValueError, match=r"'cubes'; choose one of: .*, shapes, or name a function"):
        get_dataset("cubes")
    (shapes / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"shapes \(shapes-1\), imagefolder \(images\)"):
        find_dataset(shapes)


def test_the_facts_of_a_new_dataset_reach_its_transforms(shapes):
    facts = get_dataset("shapes").facts
    (crop, flip, *_) = create_probe_transform(facts, 16).transforms
    assert (tuple(crop.scale), flip.p) == ((0.7, 1.0), 0.0)
    for method in ("moco", "simclr"):
        steps = create_pretrain_transform(method, facts, 16).transforms[0].transform.transforms
        assert tuple(steps[0].scale) == (0.7, 1.0)
        assert [step.p for step in steps if type(step).__name__ == "RandomHorizontalFlip"] == [0.0]


def test_recipes_find_and_train_on_a_new_dataset(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"{SHAPES}\nimport runpy\nrunpy.run_path({str(RECIPES / 'moco.py')!r}, run_name='__main__')"
    )
    options = ["--epochs", 1, "--batch_size", 8, "--protocol", "knn", "--output_dir", "run", *TINY]
    run = Program(program, "--data_dir", save_shapes(tmp_path), *options, cwd=tmp_path)
    code, printed, error = run.wait()
    assert code == 0, error
    assert "Found shapes-1 in" in printed
    assert "moco on shapes: 20 images of 16 pixels, test_resnet (stem timm)" in printed


def test_broken_images_of_a_new_dataset_of_files_are_left_out_and_the_others_decoded(
    tmp_path, monkeypatch
):
    def open_files(root, *, train, download):
        return ImageFiles([(str(p), 0) for p in sorted(root.glob("*.png"))], ["a"], root, "all")

    monkeypatch.setitem(DATASETS, "files", DatasetSpec("files", ImageFacts((0,), (1,)), open_files))
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"")
    images = create_dataset("files", tmp_path, True, np.shape, False, True, 1)
    assert [image for image, _ in images] == [(4, 4, 3)] * 2
    assert have_one_size(images)
    assert list(broken_images(images)) == [str(tmp_path / "b.png")]
    assert sorted(path.name for path in (tmp_path / ".decoded").iterdir()) == [
        "all.broken.json",
        "all.json",
        "all.npy",
    ]


@pytest.mark.parametrize(
    ("pixels", "targets", "message"),
    [
        (np.zeros((2, 4, 4, 3)), [0, 0], r"uint8 .*, got float64 of shape \(2, 4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0, 0], r"got uint8 of shape \(2, 3, 4, 4\)"),
        (np.zeros((2, 4), np.uint8), [0, 0], r"got uint8 of shape \(2, 4\)"),
        (np.zeros((2, 4, 4), np.uint8), [0], r"one target for each of the 2 images, got 1"),
    ],
)
def test_an_array_that_holds_no_labelled_images_is_refused(pixels, targets, message):
    with pytest.raises(ValueError, match=message):
        ImageArray(pixels, targets, ["a"])


def test_normalised_facts_keep_what_is_not_given():
    facts = get_dataset("digits").facts
    assert facts.normalised(None, None) == facts
    changed = facts.normalised([0.5, 0.5, 0.5], None)
    assert (changed.mean, changed.std) == ((0.5, 0.5, 0.5), facts.std)
    assert (changed.can_flip, changed.has_colour, changed.min_scale) == (False, False, 0.5)


def test_what_recipes_train_on_a_dataset_by_default():
    digits = get_dataset("digits")
    assert (digits.image_size, digits.backbone, digits.stem) == (32, "test_resnet", "timm")
    for name, size in [("cifar10", 32), ("tiny-imagenet", 64), ("imagefolder", None)]:
        spec = get_dataset(name)
        assert (spec.image_size, spec.backbone, spec.stem) == (size, "resnet18", "auto")


def test_importing_the_data_room_loads_no_library_that_only_a_part_of_it_needs():
    folder = Path(__file__).parents[2] / "mixco_lightly" / "data"
    modules = [f"mixco_lightly.data.{path.stem}" for path in folder.glob("*.py")]
    code = f"""if True:
        import importlib, sys, mixco_lightly.data as data
        assert "torch" not in sys.modules
        for name in {[name for name in modules if not name.endswith("__init__")]}:
            importlib.import_module(name)
        for name in data.__all__:
            getattr(data, name)
        data.create_pretrain_transform("moco", data.get_dataset("cifar10").facts, 32)
        print(*{{name.partition(".")[0] for name in sys.modules}})"""
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    heavy = {"sklearn", "kornia", "rich", "matplotlib", "pytorch_lightning", "jsonargparse"}
    assert not heavy & set(loaded)
