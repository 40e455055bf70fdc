"""A stream's images: opened, shared out to processes, left out if they are broken."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mixco_lightly.data import ImageError
from mixco_lightly.data.image_stream import ImageStream


def grey(value):
    return Image.new("L", (2, 2), value)


def encoded(value):
    file = io.BytesIO()
    grey(value).save(file, "PNG")
    return file.getvalue()


def level(image):
    """The image's grey value, which is its number."""
    assert image.mode == "RGB"
    return int(np.asarray(image)[0, 0, 0])


class Numbers(IterableDataset):
    """Images 0, 1, ... in an order that the pass decides, whole in each process."""

    def __init__(self, count, broken=()):
        self.count, self.broken, self.number = count, broken, 0

    def set_epoch(self, number):
        self.number = number

    def order(self):
        return np.random.default_rng(self.number).permutation(self.count).tolist()

    def __iter__(self):
        for value in self.order():
            yield (encoded(value)[:40] if value in self.broken else grey(value)), value


class OwnShare(Numbers):
    """Gives a worker process every n-th image by itself."""

    splits_itself = True

    def __iter__(self):
        worker = get_worker_info()
        for value in range(worker.id, self.count, worker.num_workers):
            yield grey(value), value


def read(stream, workers):
    return list(DataLoader(stream, batch_size=None, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_all_processes_of_all_devices_together_read_each_image_once(workers):
    shares = [read(ImageStream(Numbers(24), level, rank, 2), workers) for rank in range(2)]
    assert all(value == target for share in shares for value, target in share)
    values = [value for share in shares for value, _ in share]
    assert sorted(values) == list(range(24))
    assert [len(share) for share in shares] == [12, 12]


def test_a_source_that_shares_itself_out_is_read_whole():
    values = [value for value, _ in read(ImageStream(OwnShare(10), level), 2)]
    assert sorted(values) == list(range(10))
    line = ImageStream(OwnShare(10), level).describe_reading(6)
    assert line == "The stream shares itself out to 6 processes: splits_itself is set."
    assert "keeps one image of 6. A" in ImageStream(Numbers(10), level).describe_reading(6)
    assert ImageStream(Numbers(10), level).describe_reading(1) == ""


def test_each_pass_tells_the_source_its_number_and_so_has_another_order():
    stream = ImageStream(Numbers(10), level)
    orders = []
    for number in (4, 5):
        stream.start_pass(number)
        orders.append([value for value, _ in stream])
        assert orders[-1] == np.random.default_rng(number).permutation(10).tolist()
    assert orders[0] != orders[1]


def test_every_form_of_a_sample_gives_image_and_target():
    samples = [grey(1), encoded(2), (grey(3), 7), [encoded(4), torch.tensor(8)], (grey(5), b"9")]
    found = list(ImageStream(samples, level))
    assert found == [(1, 0), (2, 0), (3, 7), (4, 8), (5, 9)]
    assert all(type(target) is int for _, target in found)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.zeros(3, 2, 2), "gives Tensor: expected an image"),
        ({"jpg": b""}, "gives dict: expected an image"),
        (("a.jpg", 3), r"gives \(str, int\): expected an image"),
        ((grey(0), 1, 2), r"gives \(Image, int, int\): expected an image"),
        ((grey(0), "cat"), "gives 'cat' for the class of an image: expected a number"),
    ],
)
def test_something_else_than_an_image_is_an_error_and_no_broken_image(sample, message):
    with pytest.raises(ImageError, match=message):
        list(ImageStream([sample], level, max_broken_images=5))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_counted_over_all_processes_left_out_and_listed_once(workers, tmp_path):
    listed = tmp_path / "broken.txt"
    source = Numbers(12, broken=(2, 7, 8))
    stream = ImageStream(source, level, max_broken_images=3, broken_list=listed)
    for number in (0, 1):
        stream.start_pass(number)
        values = [value for value, _ in read(stream, workers)]
        assert sorted(values) == [0, 1, 3, 4, 5, 6, 9, 10, 11]
        assert stream.num_broken == 3
    source.set_epoch(0)
    places = sorted(source.order().index(value) + 1 for value in source.broken)
    lines = listed.read_text().splitlines()
    assert sorted(int(line.split()[3]) for line in lines) == places
    assert all(line.startswith("The image number ") for line in lines)
    assert all(" of the stream cannot be opened: " in line for line in lines)

    limited = ImageStream(Numbers(12, broken=(2, 7, 8)), level, max_broken_images=2)
    with pytest.raises(ImageError, match=r"More than 2 images of the stream cannot be opened"):
        read(limited, workers)


def test_a_file_is_named_by_its_path_and_without_a_limit_the_first_broken_image_ends_it(tmp_path):
    path = tmp_path / "cut.png"
    pixels = np.random.default_rng(0).integers(256, size=(32, 32), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    image = Image.open(path)
    with pytest.raises(ImageError, match=rf"More than 0 .* The image {path} cannot be opened: "):
        list(ImageStream([image], level))
