"""WebDataset's tar shards, read by offsets."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mixco_lightly.data import (
    ArchiveError,
    ImageError,
    create_dataset,
    create_train_test,
    find_dataset,
    has_labels,
    open_image,
)
from mixco_lightly.data.images import ImageArray, broken_images


def png(index, size=6):
    """A PNG of a size that differs from image to image, unless one is given."""
    rng = np.random.default_rng(index)
    file = io.BytesIO()
    Image.fromarray(rng.integers(256, size=(size, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path, members, format=tarfile.PAX_FORMAT, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def members(indices, classes=2, sizes=(6,), prefix=""):
    """Samples of an image, a class and a text."""
    for index in indices:
        key = f"{prefix}{index:06}"
        yield f"{key}.png", png(index, sizes[index % len(sizes)])
        yield f"{key}.cls", str(index % classes).encode()
        yield f"{key}.json", b'{"caption": "noise"}'


@pytest.fixture
def shards(tmp_path):
    """Two training shards of 5 and 4 images and a test shard of 4, in two classes."""
    root = tmp_path / "shards"
    write(root / "train-000000.tar", members(range(5)))
    write(root / "train-000001.tar", members(range(5, 9)))
    write(root / "test-000000.tar", members(range(20, 24)))
    return root


def test_every_image_of_every_shard_is_read_once_with_its_own_pixels_and_class(shards):
    images = create_dataset("webdataset", shards, train=True, keep_decoded=False)
    assert images.classes == ["0", "1"]
    assert images.targets == [index % 2 for index in range(9)]
    for index in (8, 0, 4, 5):  # in any order
        image, target = images[index]
        assert np.array_equal(image, open_image("", png(index)))
        assert target == index % 2
    test = create_dataset("webdataset", shards, train=False, keep_decoded=False)
    assert [np.array_equal(test[i][0], open_image("", png(20 + i))) for i in range(4)] == [True] * 4


def test_images_of_one_size_are_decoded_once_and_again_when_a_shard_changes(shards):
    train, test = create_train_test("webdataset", shards, keep_decoded=True)
    assert isinstance(train, ImageArray)
    assert train.pixels.shape == (9, 6, 8, 3)
    assert len(test) == 4
    # The same names, other pixels.
    write(shards / "train-000001.tar", renamed(members([9, 6, 7, 8]), "000009", "000005"))
    again = create_dataset("webdataset", shards, train=True, keep_decoded=True)
    assert isinstance(again, ImageArray)
    assert np.array_equal(again[5][0], open_image("", png(9)))


def renamed(samples, old, new):
    return [(name.replace(old, new), content) for name, content in samples]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_folders_long_names_and_every_format_of_tar_are_read(format, tmp_path):
    prefix = "./" + "a" * 60 + "/" + "b" * 60 + "/"
    write(tmp_path / "train" / "0.tar", members(range(3), prefix=prefix), format)
    write(tmp_path / "val" / "0.tar", members(range(3, 6), prefix="/../x/"), format)
    train, test = create_train_test("webdataset", tmp_path, keep_decoded=False)
    assert np.array_equal(train[2][0], open_image("", png(2)))
    assert test.samples[1] == (f"{tmp_path}/val/0.tar/x/000004.png", 0)
    assert np.array_equal(test[1][0], open_image("", png(4)))


def test_images_of_several_sizes_stay_in_the_shards_and_survive_worker_processes(shards):
    write(shards / "train-000001.tar", members(range(5, 9), sizes=(6, 7)))
    images = create_dataset("webdataset", shards, True, transform=np.asarray)
    assert not isinstance(images, ImageArray)
    assert len(pickle.dumps(images)) < 4000  # no image is in it
    loader = DataLoader(images, batch_size=None, num_workers=1)
    shapes = [tuple(image.shape) for image, _ in loader]
    assert shapes == [(6, 8, 3)] * 5 + [(7 if index % 2 else 6, 8, 3) for index in range(5, 9)]


def test_classes_txt_names_the_classes_and_numbers_without_it_are_their_own_names(tmp_path):
    for part in ("train", "test"):  # classes 0 and 2 of three
        write(tmp_path / f"{part}.tar", members([0, 2, 3, 5], classes=3))
    train, _ = create_train_test("webdataset", tmp_path, keep_decoded=False)
    assert train.classes == ["0", "2"]
    assert train.targets == [0, 1, 0, 1]
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    train, test = create_train_test("webdataset", tmp_path, keep_decoded=False)
    assert train.classes == test.classes == ["cat", "dog", "bird"]
    assert train.targets == [0, 2, 0, 2]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"classes\.txt names 2 classes, .* of class 2: give a"):
        create_train_test("webdataset", tmp_path)


def test_shards_without_test_shards_or_without_classes_are_trained_on_without_labels(tmp_path):
    write(tmp_path / "a" / "00000.tar", members(range(3)))
    write(tmp_path / "b" / "train-0.tar", [(f"{i}.jpg", png(i)) for i in range(3)])
    write(tmp_path / "b" / "test-0.tar", [(f"{i}.jpg", png(i)) for i in range(3)])
    for folder in ("a", "b"):
        assert not has_labels("webdataset", tmp_path / folder)
        images = create_dataset("webdataset", tmp_path / folder, train=True)
        assert (images.classes, images.targets) == ([], [0, 0, 0])
        with pytest.raises(FileNotFoundError, match=r"have no labels: expected a member .cls"):
            create_train_test("webdataset", tmp_path / folder)
    with pytest.raises(FileNotFoundError, match=r"There are no test shards in .*a has 00000"):
        create_dataset("webdataset", tmp_path / "a", train=False)


def test_a_broken_image_is_named_by_shard_and_member_or_left_out_up_to_the_limit(shards):
    damaged = [
        (name, content[:60] if name in ("000006.png", "000008.png") else content)
        for name, content in members(range(5, 9))
    ]
    write(shards / "train-000001.tar", damaged)
    first = f"The image {shards}/train-000001.tar/000006.png cannot be opened: "
    images = create_dataset("webdataset", shards, True, keep_decoded=False)
    with pytest.raises(ImageError, match=first):
        images[6]
    with pytest.raises(ImageError, match=f"More than 1 images of train-shards .*{first}"):
        create_dataset("webdataset", shards, True, max_broken_images=1)
    for _ in range(2):  # searched, then read from .decoded
        images = create_dataset("webdataset", shards, True, max_broken_images=2)
        assert [target for _, target in images] == [0, 1, 0, 1, 0, 1, 1]
        assert np.array_equal(images[6][0], open_image("", png(7)))
        reasons = broken_images(images)
        assert list(reasons) == [f"{shards}/train-000001.tar/{i:06}.png" for i in (6, 8)]
        assert all(reason.startswith("The image ") for reason in reasons.values())


def link(path):
    """A tar file whose image is stored as a link to another member."""
    with tarfile.open(path, "w") as file:
        member = tarfile.TarInfo("1.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(member)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: path.write_bytes(b"no tar" * 200), ArchiveError, "is damaged or not"),
        (lambda path: path.write_bytes(b""), ArchiveError, "is damaged or not"),
        (
            lambda path: write(path, members(range(3)), mode="w:gz"),
            ArchiveError,
            "is damaged or not an uncompressed tar file",
        ),
        # Cut within an image.
        (lambda path: path.write_bytes(path.read_bytes()[:700]), ArchiveError, "unexpected end"),
        # Python's tarfile ends silently at such a header, with the images so far.
        (
            lambda path: path.write_bytes(
                path.read_bytes().replace(b"000001.png", b"\xff0001.png", 1)
            ),
            ArchiveError,
            "there is no header at byte",
        ),
        (link, ArchiveError, "'1.png' as a link"),
        (
            lambda path: write(path, [*members([1]), ("000001.jpg", png(1))]),
            ArchiveError,
            "two images '000001'",
        ),
        (
            lambda path: write(path, [*members([1]), ("2.png", png(2))]),
            ValueError,
            r"train\.tar/2\.png has no class, and 1 of 2 images",
        ),
        (
            lambda path: write(path, [("1.png", png(1)), ("1.cls", b"\x80\x04K\x01.")]),
            ValueError,
            r"train\.tar/1\.cls is b'.*': expected the number of a class",
        ),
        (lambda path: write(path, [("1.txt", b"")]), FileNotFoundError, "no image .* 1 tar files"),
    ],
)
def test_a_damaged_shard_and_a_sample_that_is_none_are_one_clear_error(
    damage, error, message, tmp_path
):
    path = write(tmp_path / "train.tar", members(range(3)))
    write(tmp_path / "test.tar", members(range(3)))
    damage(path)
    with pytest.raises(error, match=message) as raised:
        create_dataset("webdataset", tmp_path, train=True)
    assert "\n" not in str(raised.value)


def test_a_shard_with_random_damage_is_read_or_is_one_clear_error(tmp_path):
    write(tmp_path / "test.tar", members([0]))
    whole = write(tmp_path / "train.tar", members(range(2))).read_bytes()
    headers = [at for at in range(0, len(whole), 512) if whole[at : at + 5] == b"00000"]
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(200):
        damaged = bytearray(whole)
        at = rng.choice(headers) + rng.choice([*range(12), *range(124, 158)])
        damaged[at] = rng.integers(256)
        # With a checksum that is right, so that the damaged field is believed.
        start = at // 512 * 512
        damaged[start + 148 : start + 156] = b" " * 8
        damaged[start + 148 : start + 155] = b"%06o\0" % sum(damaged[start : start + 512])
        (tmp_path / "train.tar").write_bytes(damaged)
        try:
            images = create_dataset("webdataset", tmp_path, train=True)
            [images[index] for index in range(len(images))]
        except (ArchiveError, ValueError, FileNotFoundError, ImageError) as error:
            messages.append(str(error))
    assert 20 < len(messages) < 200
    assert not any("\n" in message for message in messages)


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_are_not_read_and_commands_and_addresses_are_refused(shards, tmp_path):
    pickled = pickle.dumps(Marker(str(tmp_path / "unpickled")))
    harmful = [("000000.pyd", pickled), ("000000.pickle", pickled), ("000000.pth", pickled)]
    write(shards / "train-000000.tar", [*members(range(5)), *harmful])
    create_train_test("webdataset", shards)
    assert not (tmp_path / "unpickled").exists()
    for address in [
        f"pipe:touch {tmp_path}/run; cat {shards}/train-000000.tar",
        "https://example.com/train-000000.tar",
        "s3://bucket/train",
        f"{shards}/train-{{000000..000001}}.tar",
        f"{shards}/train-*.tar",
    ]:
        for opener in (create_dataset, has_labels):
            arguments = [True] if opener is create_dataset else []
            with pytest.raises(FileNotFoundError, match="Give a folder on this machine; patterns"):
                opener("webdataset", address, *arguments)
    assert not (tmp_path / "run").exists()


def test_shards_are_found_by_their_layout_unless_images_lie_there_too(shards, tmp_path):
    assert find_dataset(shards) == ("webdataset", "train-000000.tar")
    write(tmp_path / "flat" / "00000.tar", members(range(3)))
    assert find_dataset(tmp_path / "flat") == ("webdataset", "00000.tar")
    # An archive beside its unpacked images is no shard of theirs.
    (tmp_path / "flat" / "a.png").write_bytes(png(0))
    assert find_dataset(tmp_path / "flat") == ("imagefolder", "images")
    (shards / "a.png").write_bytes(png(0))
    with pytest.raises(ValueError, match=r"webdataset \(train-000000.tar\), imagefolder"):
        find_dataset(shards)
    write(tmp_path / "only" / "test-0.tar", members(range(3)))
    with pytest.raises(FileNotFoundError, match=r"webdataset expects .*train-"):
        create_dataset("webdataset", tmp_path / "only", train=True)


def test_webdatasets_own_reader_groups_and_orders_the_same_samples(shards):
    import webdataset

    paths = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    theirs = webdataset.WebDataset(paths, shardshuffle=False).to_tuple("png", "cls")
    ours = create_dataset("webdataset", shards, train=True, keep_decoded=False)
    for (image, target), (content, number) in zip(ours, theirs, strict=True):
        assert np.array_equal(image, open_image("", content))
        assert target == int(number)
