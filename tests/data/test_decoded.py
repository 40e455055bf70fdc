import errno
import json
import multiprocessing
import os
import pickle
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import PILToTensor

from mixco_lightly.data.decoded import DecodedImages, decode_once
from mixco_lightly.data.images import ImageError, open_image

CLASSES = ["cat", "dog"]


class CountingLoader:
    def __init__(self):
        self.paths = []

    def __call__(self, path):
        self.paths.append(path)
        return open_image(path)


def save_noise(path, seed, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def find_samples(folder):
    return [
        (str(path), target)
        for target, name in enumerate(CLASSES)
        for path in sorted((folder / name).glob("*.png"))
    ]


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images each, 6 pixels wide and 5 high."""
    for seed in range(6):
        save_noise(tmp_path / CLASSES[seed % 2] / f"{seed}.png", seed)
    return tmp_path


def decode(folder, loader=open_image, **options):
    return decode_once(find_samples(folder), CLASSES, folder, "train", loader=loader, **options)


def assert_equal_to_the_files(images, folder):
    samples = find_samples(folder)
    assert len(images) == len(samples)
    for index, (path, target) in enumerate(samples):
        image, its_target = images[index]
        assert its_target == target
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.asarray(open_image(path)))


def kept(folder):
    """Names of all the files in the folder of decoded images."""
    return sorted(path.name for path in (folder / ".decoded").iterdir())


def assert_nothing_kept(folder):
    decoded = folder / ".decoded"
    assert not decoded.is_dir() or kept(folder) == []


def test_images_and_targets_are_those_of_the_loader(folder):
    images = decode(folder)
    assert_equal_to_the_files(images, folder)
    assert images.targets == [0, 0, 0, 1, 1, 1]
    assert images.classes == CLASSES
    assert images.pixels.shape == (6, 5, 6, 3)
    assert kept(folder) == ["train.json", "train.npy"]


def test_images_are_decoded_once(folder):
    first, second = CountingLoader(), CountingLoader()
    decode(folder, first)
    assert set(first.paths) == {path for path, _ in find_samples(folder)}
    assert_equal_to_the_files(decode(folder, second), folder)
    assert second.paths == []


def test_targets_and_classes_are_the_given_ones_also_the_second_time(folder):
    decode(folder)
    samples = [(path, 1 - target) for path, target in find_samples(folder)]
    images = decode_once(samples, CLASSES[::-1], folder, "train", loader=open_image)
    assert images.targets == [1, 1, 1, 0, 0, 0]
    assert images.classes == CLASSES[::-1]


def test_parts_of_the_data_have_files_of_their_own(folder):
    decode(folder)
    decode_once(find_samples(folder)[:2], CLASSES, folder, "val", loader=open_image)
    assert kept(folder) == ["train.json", "train.npy", "val.json", "val.npy"]
    assert_equal_to_the_files(decode(folder), folder)


def test_transform_is_applied_to_the_image(folder):
    image, target = decode(folder, transform=lambda image: ("seen", image.size))[5]
    assert (image, target) == (("seen", (6, 5)), 1)


def test_progress_sees_every_sample_only_while_decoding(folder):
    seen = []

    def progress(samples, title):
        for sample in samples:
            seen.append((sample, title))
            yield sample

    decode(folder, progress=progress)
    assert seen == [(sample, "decoding train") for sample in find_samples(folder)]
    decode(folder, progress=progress)
    assert len(seen) == 6


def change(folder):
    path = folder / "cat" / "2.png"
    before = path.stat()
    save_noise(path, 99)
    # As if it were a second later, whatever the resolution of the file system's clock.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def truncate(folder):
    path = folder / ".decoded" / "train.npy"
    path.write_bytes(path.read_bytes()[:-1])


def truncate_to_the_header(folder):
    path = folder / ".decoded" / "train.npy"
    path.write_bytes(path.read_bytes()[:20])


def flip_a_byte(folder):
    path = folder / ".decoded" / "train.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def write_facts(text):
    return lambda folder: (folder / ".decoded" / "train.json").write_text(text)


def save_objects(folder):
    array = np.array([Explosive()], dtype=object)
    np.save(folder / ".decoded" / "train.npy", array, allow_pickle=True)


class Explosive:
    """Ends the test if it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("The array was unpickled.",)


def break_the_header(folder):
    """NumPy's reader then fails with an error of Python's tokenizer."""
    path = folder / ".decoded" / "train.npy"
    path.write_bytes(path.read_bytes().replace(b"}", b"(", 1))


DAMAGES = {
    "image changed": change,
    "image added": lambda folder: save_noise(folder / "cat" / "9.png", 9),
    "image removed": lambda folder: (folder / "dog" / "3.png").unlink(),
    "image renamed": lambda folder: (folder / "dog" / "3.png").rename(folder / "dog" / "8.png"),
    "image moved": lambda folder: (folder / "dog" / "3.png").rename(folder / "cat" / "3.png"),
    "array truncated": truncate,
    "array of a header": truncate_to_the_header,
    "header no Python": break_the_header,
    "array empty": lambda folder: (folder / ".decoded" / "train.npy").write_bytes(b""),
    "array missing": lambda folder: (folder / ".decoded" / "train.npy").unlink(),
    "byte flipped": flip_a_byte,
    "array of objects": save_objects,
    "facts missing": lambda folder: (folder / ".decoded" / "train.json").unlink(),
    "facts no json": write_facts("{"),
    "facts empty": write_facts(""),
    "facts a list": write_facts("[]"),
    "facts without values": write_facts("{}"),
    "facts no text": lambda folder: (folder / ".decoded" / "train.json").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_images_are_decoded_again_after(damage, folder):
    decode(folder)
    damage(folder)
    loader = CountingLoader()
    assert_equal_to_the_files(decode(folder, loader), folder)
    assert set(loader.paths) == {path for path, _ in find_samples(folder)}
    assert kept(folder) == ["train.json", "train.npy"]
    # What was decoded again is kept again.
    second = CountingLoader()
    assert_equal_to_the_files(decode(folder, second), folder)
    assert second.paths == []


@pytest.mark.parametrize("key", ["fingerprint", "sha256"])
def test_images_are_decoded_again_if_a_digest_differs(key, folder):
    decode(folder)
    facts = folder / ".decoded" / "train.json"
    values = json.loads(facts.read_text())
    assert set(values) == {"fingerprint", "sha256"}
    facts.write_text(json.dumps(values | {key: "0" * 64}))
    loader = CountingLoader()
    assert_equal_to_the_files(decode(folder, loader), folder)
    assert loader.paths


def test_a_folder_that_moved_keeps_its_decoded_images(folder, tmp_path_factory):
    decode(folder)
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "data")
    loader = CountingLoader()
    assert_equal_to_the_files(decode(moved, loader), moved)
    assert loader.paths == []


def test_images_of_different_sizes_go_into_no_array(folder):
    save_noise(folder / "dog" / "9.png", 9, size=(5, 6))
    assert decode(folder) is None
    assert not (folder / ".decoded").exists()


def test_images_that_are_too_large_together_go_into_no_array(folder, monkeypatch):
    monkeypatch.setattr("mixco_lightly.data.decoded._MAX_BYTES", 6 * 5 * 6 * 3 - 1)
    assert decode(folder) is None
    assert_nothing_kept(folder)
    monkeypatch.setattr("mixco_lightly.data.decoded._MAX_BYTES", 6 * 5 * 6 * 3)
    assert_equal_to_the_files(decode(folder), folder)


@pytest.mark.parametrize("broken", ["cat/0.png", "dog/5.png"], ids=["first", "last"])
def test_a_broken_image_is_the_loader_s_error(broken, folder):
    path = folder / broken
    path.write_bytes(path.read_bytes()[:60])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ImageError) as caught:
            decode(folder)
    assert warned == []
    assert str(path) in str(caught.value)
    assert_nothing_kept(folder)


def test_a_folder_that_cannot_be_made_is_a_warning(folder):
    # Root may write everywhere, but not make a folder where a file is.
    (folder / ".decoded").write_text("")
    with pytest.warns(UserWarning, match=r"cannot be kept in .*\.decoded.*in every epoch"):
        assert decode(folder) is None


def test_a_folder_that_may_not_be_written_to_is_a_warning(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.warns(UserWarning, match="cannot be kept in .*Permission denied"):
        assert decode(folder) is None
    assert_nothing_kept(folder)


class FullDisk:
    """A file that takes the given number of bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()

    def write(self, content):
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(content)


@pytest.mark.parametrize("room", [0, 100, 300], ids=["header", "first image", "later image"])
def test_a_full_disk_is_a_warning_and_leaves_nothing(room, folder, monkeypatch):
    def open_full(path, mode="r", *args, **kwargs):
        file = open(path, mode, *args, **kwargs)  # noqa: SIM115 - FullDisk closes it
        return FullDisk(file, room) if mode == "wb" else file

    monkeypatch.setattr("mixco_lightly.data.decoded.open", open_full, raising=False)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert decode(folder) is None
    assert_nothing_kept(folder)


@pytest.mark.parametrize("failing", ["train.npy", "train.json"])
def test_a_file_that_cannot_be_put_in_place_is_a_warning(failing, folder, monkeypatch):
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.warns(UserWarning, match="No space left on device"):
            assert decode(folder) is None
    # An array without its facts may stay: it is never taken for whole.
    assert kept(folder) in ([], ["train.npy"])
    loader = CountingLoader()
    assert_equal_to_the_files(decode(folder, loader), folder)
    assert loader.paths


def decode_in_a_process(folder, barrier, results):
    barrier.wait(60)
    images = decode(folder)
    results.put([np.asarray(images[index][0]).tolist() for index in range(len(images))])


def test_two_processes_at_once_end_with_one_good_array(folder):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=decode_in_a_process, args=(folder, barrier, results))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    expected = [np.asarray(open_image(path)).tolist() for path, _ in find_samples(folder)]
    assert found == [expected, expected]
    assert kept(folder) == ["train.json", "train.npy"]
    loader = CountingLoader()
    assert_equal_to_the_files(decode(folder, loader), folder)
    assert loader.paths == []


def test_a_pickle_has_the_path_and_not_the_pixels(tmp_path):
    for seed in range(2):
        save_noise(tmp_path / "cat" / f"{seed}.png", seed, size=(64, 64))
    images = decode(tmp_path)
    pickled = pickle.dumps(images)
    assert len(pickled) < images.pixels.nbytes / 10
    copy = pickle.loads(pickled)  # noqa: S301
    assert isinstance(copy.pixels, np.memmap)
    assert_equal_to_the_files(copy, tmp_path)


def test_worker_processes_read_the_same_images(folder):
    images = decode(folder, transform=PILToTensor())
    loader = DataLoader(images, batch_size=2, num_workers=2)
    batches = list(loader)
    assert [target for _, targets in batches for target in targets.tolist()] == images.targets
    pixels = np.concatenate([batch.numpy().transpose(0, 2, 3, 1) for batch, _ in batches])
    expected = [np.asarray(open_image(path)) for path, _ in find_samples(folder)]
    assert np.array_equal(pixels, np.stack(expected))


def test_the_array_is_mapped_and_read_only(folder):
    images = decode(folder).pixels
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_an_array_of_objects_is_refused(folder):
    decode(folder)
    save_objects(folder)
    with pytest.raises(ValueError, match="Python objects"):
        DecodedImages(folder / ".decoded" / "train.npy", [0], CLASSES)


def test_whoever_may_read_the_folder_may_read_the_decoded_images(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    decode_once([(str(tmp_path / "a.png"), 0)], ["a"], tmp_path, "train")
    for name in ("train.npy", "train.json"):
        readable = (tmp_path / ".decoded" / name).stat().st_mode & 0o444
        assert readable == (tmp_path / ".decoded").stat().st_mode & 0o444
