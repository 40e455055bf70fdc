"""Images that cannot be opened are named, and left out where that is wanted."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

from mixco_lightly.data.catalogue import create_dataset, create_train_test
from mixco_lightly.data.image_files import ImageFiles
from mixco_lightly.data.images import ImageError, broken_images, open_image

SIZE = 32


def photograph(form):
    """An image file's bytes."""
    pixels = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form)
    return file.getvalue()


def png_of_claimed_size(width, height):
    """A PNG whose header, with a right checksum, claims a size that its pixels do not have."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = photograph("PNG")
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def bomb():
    """A PNG of a few kilobytes with 400 million black pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    side = 20_000
    rows = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def flip(content, at):
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated JPEG": lambda path: path.write_bytes(photograph("JPEG")[:-300]),
    "truncated PNG": lambda path: path.write_bytes(photograph("PNG")[:1000]),
    "header of a JPEG alone": lambda path: path.write_bytes(photograph("JPEG")[:20]),
    "text": lambda path: path.write_text("This is not an image."),
    "checksum of a PNG's header": lambda path: path.write_bytes(flip(photograph("PNG"), 29)),
    "pixels of a PNG of no bytes": lambda path: path.write_bytes(
        photograph("PNG")[:33] + struct.pack(">I", 0) + b"IDAT" + b"\x35\xaf\x06\x1e"
    ),
    "folder": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
    "claimed size": lambda path: path.write_bytes(
        png_of_claimed_size(2_000_000_000, 2_000_000_000)
    ),
    "bomb": lambda path: path.write_bytes(bomb()),
    "truncated GIF": lambda path: path.write_bytes(photograph("GIF")[:100]),
    "truncated BMP": lambda path: path.write_bytes(photograph("BMP")[:-500]),
    "truncated TIFF": lambda path: path.write_bytes(photograph("TIFF")[:200]),
    "truncated WebP": lambda path: path.write_bytes(photograph("WEBP")[:-200]),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_image_is_an_error_that_names_it(kind, tmp_path):
    path = tmp_path / "image.jpg"
    BROKEN[kind](path)
    with pytest.raises(ImageError, match=r"^The image .* cannot be opened: \S") as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def save_gif(path):
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def save_palette_with_transparency(path):
    image = Image.new("P", (SIZE, SIZE))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(path, format="PNG", transparency=b"\x80\xff")


def save_with_broken_exif(path):
    Image.new("RGB", (SIZE, SIZE), "red").save(
        path, format="JPEG", quality=100, subsampling=0, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" * 9
    )


UNUSUAL = {
    "animated GIF": save_gif,
    "palette with transparency": save_palette_with_transparency,
    "CMYK": lambda path: (
        Image.new("RGB", (SIZE, SIZE), "red").convert("CMYK").save(path, format="JPEG", quality=100)
    ),
    "broken EXIF": save_with_broken_exif,
    "transparent": lambda path: Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 9)).save(
        path, format="PNG"
    ),
    "a single pixel": lambda path: Image.new("RGB", (1, 1), "red").save(path, format="PNG"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_image_opens_as_rgb(kind, tmp_path):
    path = tmp_path / "image.jpg"
    UNUSUAL[kind](path)
    image = open_image(path)
    assert image.mode == "RGB"
    red, green, blue = image.getpixel((0, 0))
    assert red > 245
    assert max(green, blue) < 10


@pytest.mark.parametrize(("pixels", "opens"), [(64, True), (63, False), (40, False), (20, False)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_cap_of_pixels_is_an_error_with_limit_and_path(pixels, opens, tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.new("RGB", (16, 4)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    if opens:
        assert open_image(path).size == (16, 4)
        return
    with pytest.raises(ImageError, match=rf"more than {pixels} pixels, the limit") as caught:
        open_image(path)
    assert str(path) in str(caught.value)


def test_without_a_cap_every_size_opens(tmp_path, monkeypatch):
    Image.new("RGB", (16, 4)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(tmp_path / "image.png").size == (16, 4)


def break_images(folder, *names):
    paths = [folder / "train" / name for name in names]
    for path in paths:
        path.write_bytes(path.read_bytes()[:100])
    return [str(path) for path in paths]


def open_folder(folder, limit, keep_decoded=False):
    return create_dataset(
        "imagefolder",
        folder,
        train=True,
        transform=ToTensor(),
        keep_decoded=keep_decoded,
        max_broken_images=limit,
    )


@pytest.mark.parametrize("keep_decoded", [False, True])
def test_broken_images_are_left_out_up_to_the_limit(keep_decoded, image_folder):
    whole = open_folder(image_folder, 0)
    images = torch.stack([image for image, _ in whole])
    paths = break_images(image_folder, "blue/03.png", "red/00.png", "red/11.png")
    with pytest.raises(ImageError, match="More than 2 images of train") as caught:
        open_folder(image_folder, 2, keep_decoded)
    assert paths[0] in str(caught.value)
    for _ in range(2):  # opened, and then known
        part = open_folder(image_folder, 3, keep_decoded)
        assert list(broken_images(part)) == paths
        for path, reason in broken_images(part).items():
            assert f"The image {path} cannot be opened: " in reason
        kept = [index for index in range(24) if index not in (3, 12, 23)]
        assert torch.equal(torch.stack([image for image, _ in part]), images[kept])
        assert list(part.targets) == [whole.targets[index] for index in kept]
        assert part.classes == whole.classes
    with pytest.raises(ImageError, match="More than 2 images"):
        open_folder(image_folder, 2, keep_decoded)


def test_a_missing_file_behind_a_link_is_left_out_too(image_folder):
    path = image_folder / "train" / "red" / "05.png"
    path.unlink()
    path.symlink_to("nowhere")
    assert len(open_folder(image_folder, 1)) == 23
    with pytest.raises(ImageError, match=str(path)):
        list(DataLoader(open_folder(image_folder, 0), batch_size=8))
    with pytest.raises(ImageError, match=str(path)):
        open_folder(image_folder, 0, keep_decoded=True)


def test_what_is_broken_is_found_once_until_the_images_change(image_folder, monkeypatch):
    opened = []

    def count(path):
        opened.append(path)
        return open_image(path)

    class CountedFiles(ImageFiles):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords, loader=count)

    monkeypatch.setattr("mixco_lightly.data.image_folder.ImageFiles", CountedFiles)
    break_images(image_folder, "red/00.png")
    for _ in range(2):
        assert len(open_folder(image_folder, 1)) == 23
        assert len(opened) == 24
    Image.new("RGB", (16, 16)).save(image_folder / "train" / "red" / "00.png")
    assert len(open_folder(image_folder, 1)) == 24
    assert len(opened) == 48
    for text in ("", "[]", "{", '{"fingerprint": 3}'):
        (image_folder / ".decoded" / "train.broken.json").write_text(text)
        assert len(open_folder(image_folder, 1)) == 24


def test_a_folder_that_cannot_be_written_to_is_opened_each_time(image_folder):
    (image_folder / ".decoded").write_text("in the way")
    break_images(image_folder, "red/00.png")
    for _ in range(2):
        assert len(open_folder(image_folder, 1)) == 23


def test_a_class_without_an_image_left_is_an_error(image_folder):
    names = [f"red/{index:02}.png" for index in range(12)]
    break_images(image_folder, *names)
    with pytest.raises(ImageError, match="Every image of red in train is broken"):
        open_folder(image_folder, 20)


def test_training_and_test_images_have_the_limit_each(image_folder):
    break_images(image_folder, "red/00.png", "../test/red/00.png")
    train, test = create_train_test("imagefolder", image_folder, max_broken_images=1)
    assert (len(train), len(test)) == (23, 11)
    assert len(broken_images(train, test)) == 2
    assert broken_images(create_dataset("digits", "", True)) == {}


def test_the_kept_outcome_is_relative_so_that_the_folder_may_move(image_folder, monkeypatch):
    break_images(image_folder, "red/00.png")
    open_folder(image_folder, 1)
    moved = image_folder.with_name("moved")
    image_folder.rename(moved)
    monkeypatch.setattr("mixco_lightly.data.image_files.open_image", None)  # it is not called
    assert list(broken_images(open_folder(moved, 1))) == [str(moved / "train" / "red" / "00.png")]
    kept = json.loads((moved / ".decoded" / "train.broken.json").read_text())
    assert list(kept["broken"]) == ["train/red/00.png"]
