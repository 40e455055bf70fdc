"""The archive of TinyImageNet: unpacked whole, or refused and nothing written."""

import errno
import io
import os
import shutil
import stat
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from mixco_lightly.data.archive import ArchiveError, Contents, unpack_once
from mixco_lightly.data.catalogue import create_dataset, create_train_test

TOP = "tiny-imagenet-200"
WNIDS = ["n01", "n02"]
CONTENTS = Contents(TOP, "wnids.txt", max_files=50, max_bytes=200_000)


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG")
    return file.getvalue()


def good_entries():
    """Name and content of each file of a small TinyImageNet."""
    files = {"wnids.txt": "\n".join(WNIDS).encode()}
    rows = []
    for target, wnid in enumerate(WNIDS):
        for index in range(3):
            files[f"train/{wnid}/images/{wnid}_{index}.JPEG"] = jpeg(10 * target + index)
        files[f"val/images/val_{target}.JPEG"] = jpeg(100 + target)
        rows.append(f"val_{target}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    files["val/val_annotations.txt"] = "".join(rows).encode()
    return {f"{TOP}/{name}": content for name, content in files.items()}


def write_zip(path, entries, compression=zipfile.ZIP_STORED):
    """An archive of (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for entry, content in entries:
            file.writestr(entry, content)
    return path


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "data" / f"{TOP}.zip"
    path.parent.mkdir()
    return write_zip(path, good_entries().items())


def entry(name, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    return info


def assert_nothing_written(folder):
    names = {path.name for path in folder.iterdir()}
    assert names <= {f"{TOP}.zip", f".{TOP}.lock"}
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}


@pytest.mark.parametrize("train", [True, False])
def test_the_archive_is_read_as_its_folder_is(train, archive, tmp_path):
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "by hand")
    packed = create_dataset("tiny-imagenet", archive, train)
    by_hand = create_dataset("tiny-imagenet", tmp_path / "by hand", train)
    assert packed.classes == by_hand.classes == WNIDS
    assert packed.targets == by_hand.targets
    for (image, _), (expected, _) in zip(packed, by_hand, strict=True):
        assert np.array_equal(image, expected)
    assert {path.name for path in archive.parent.iterdir()} - {f".{TOP}.lock"} == {
        TOP,
        archive.name,
    }


def test_the_archive_is_unpacked_once_and_not_needed_after_that(archive):
    create_train_test("tiny-imagenet", archive)
    marker = archive.parent / TOP / "train" / "mine"
    marker.touch()
    archive.unlink()
    create_train_test("tiny-imagenet", archive)
    assert marker.exists()


def test_folders_may_have_entries_of_their_own(archive):
    folders = [(f"{TOP}/", b""), (f"{TOP}/train/", b"")]
    write_zip(archive, [*folders, *good_entries().items()])
    assert len(create_dataset("tiny-imagenet", archive, True)) == 6


def link(name, target):
    return entry(name, stat.S_IFLNK | 0o777), target


def understate_size(path):
    """Makes the directory say that the first file has 10 bytes."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(content)


def encrypt(path):
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    path.write_bytes(content)


MALICIOUS = {
    "parent folder": ([("../evil", b"x")], "has an empty part"),
    "parent folder further down": ([(f"{TOP}/../../evil", b"x")], "has an empty part"),
    "absolute path": ([("/tmp/evil", b"x")], "has an empty part"),
    "backslashes": ([(f"{TOP}\\..\\..\\evil", b"x")], "characters"),
    "drive": ([("C:/evil", b"x")], "characters"),
    "line break": ([(f"{TOP}/a\nb", b"x")], "characters"),
    "dot": ([(f"{TOP}/./evil", b"x")], "has an empty part"),
    "empty part": ([(f"{TOP}//evil", b"x")], "has an empty part"),
    "another folder": ([("evil/file", b"x")], f"is not in {TOP}"),
    "beside the folder": ([("evil", b"x")], f"is not in {TOP}"),
    "symbolic link": ([link(f"{TOP}/link", "/etc")], "is a link"),
    "file through a link": (
        [link(f"{TOP}/link", "/tmp"), (f"{TOP}/link/evil", b"x")],
        "is a link",
    ),
    "device": ([(entry(f"{TOP}/null", stat.S_IFCHR | 0o666), b"")], "special file"),
    "pipe": ([(entry(f"{TOP}/pipe", stat.S_IFIFO | 0o666), b"")], "special file"),
    "duplicate": ([(f"{TOP}/wnids.txt", b"n03")], "has 2 entries"),
    "duplicate but for case": ([(f"{TOP}/WNIDS.txt", b"n03")], "has 2 entries"),
    "file and folder of one name": ([(f"{TOP}/wnids.txt/", b"")], "has 2 entries"),
    "file as a folder": ([(f"{TOP}/wnids.txt/evil", b"x")], "both a file and a folder"),
    "too many": (
        [(f"{TOP}/{index}", b"") for index in range(50)],
        "entries, more than the limit of 50",
    ),
    "too large": ([(f"{TOP}/large", bytes(200_001))], "bytes, more than the limit of 200,000"),
}


@pytest.mark.parametrize("case", MALICIOUS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_such_an_entry_is_refused_and_nothing_is_written(case, archive):
    entries, named = MALICIOUS[case]
    write_zip(archive, [*good_entries().items(), *entries])
    with pytest.raises(ArchiveError, match=named) as caught:
        unpack_once(archive, CONTENTS)
    assert str(archive) in str(caught.value)
    assert_nothing_written(archive.parent)


def test_a_zero_byte_does_not_hide_the_rest_of_a_name(archive):
    write_zip(archive, [*good_entries().items(), (f"{TOP}/a_/../../evil", b"x")])
    archive.write_bytes(archive.read_bytes().replace(b"/a_/", b"/a\0/"))
    with pytest.raises(ArchiveError, match="characters"):
        unpack_once(archive, CONTENTS)
    assert_nothing_written(archive.parent)


def test_a_bomb_is_refused_by_its_ratio(archive):
    bomb = (f"{TOP}/zeros", bytes(199_000))
    entries = [(f"{TOP}/wnids.txt", b"n01"), bomb]
    write_zip(archive, entries, zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 1000
    with pytest.raises(ArchiveError, match="more than 50 times as large"):
        unpack_once(archive, CONTENTS)
    assert_nothing_written(archive.parent)


def test_a_bomb_that_understates_its_size_is_not_unpacked(archive):
    write_zip(
        archive, [(f"{TOP}/a", bytes(199_000)), (f"{TOP}/wnids.txt", b"n01")], zipfile.ZIP_DEFLATED
    )
    understate_size(archive)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack_once(archive, CONTENTS)
    assert_nothing_written(archive.parent)


def damage_crc(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"n01\nn02")] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a zip"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "cut in the middle": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "its beginning is missing": lambda path: path.write_bytes(path.read_bytes()[500:]),
    "another byte in a file": damage_crc,
    "encrypted": encrypt,
    "nothing in it": lambda path: write_zip(path, []),
    "another data set": lambda path: write_zip(path, [(f"{TOP}/words.txt", b"x")]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_archive_is_named_and_nothing_is_left(damage, archive):
    damage(archive)
    with pytest.raises(ArchiveError) as caught:
        create_dataset("tiny-imagenet", archive, train=True)
    assert str(archive) in str(caught.value)
    assert_nothing_written(archive.parent)


def test_random_changes_of_bytes_are_refused_or_change_nothing(archive):
    whole, expected = archive.read_bytes(), good_entries()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for at in rng.integers(len(content), size=3):
            content[at] = rng.integers(256)
        archive.write_bytes(content)
        try:
            folder = unpack_once(archive, CONTENTS)
        except ArchiveError:
            refused += 1
            assert_nothing_written(archive.parent)
        else:  # a byte that nobody reads, or a date or a name that became another
            written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
            assert sorted(written) == sorted(expected.values())
            shutil.rmtree(folder)
    assert refused > 75


def test_a_disk_that_is_full_leaves_nothing(archive, monkeypatch):
    def fail(source, target):
        target.write(source.read(3))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", fail)
        with pytest.raises(OSError, match="No space left on device"):
            unpack_once(archive, CONTENTS)
    assert_nothing_written(archive.parent)


def test_what_a_killed_process_left_is_no_data_set(archive):
    left = archive.parent / f".{TOP}.partial" / TOP
    left.mkdir(parents=True)
    (left / "wnids.txt").write_text("n99")
    assert (unpack_once(archive, CONTENTS) / "wnids.txt").read_text() == "n01\nn02"
    assert not left.exists()


def test_a_folder_in_the_way_is_named_and_left_alone(archive):
    (archive.parent / TOP).mkdir()
    (archive.parent / TOP / "mine").write_text("x")
    with pytest.raises(ArchiveError, match=r"wnids\.txt\. Move that"):
        unpack_once(archive, CONTENTS)
    assert os.listdir(archive.parent / TOP) == ["mine"]


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no archive .*nowhere\.zip"):
        create_dataset("tiny-imagenet", tmp_path / "nowhere.zip", train=True)
