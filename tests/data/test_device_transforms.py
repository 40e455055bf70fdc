"""The device's views against Lightly's own, image by image and in distribution.

Two samples of a statistic agree if their means, and their standard deviations, are at most four
standard errors apart. Two equal distributions fail that once in 16,000 comparisons, and the seeds
are fixed. Where Pillow's rounding to whole grey levels
shifts a statistic, that shift is added. Beside each comparison stands one of a slightly different
distribution, which must not agree.
"""

import pickle
import runpy
import sys

import kornia
import numpy as np
import pytest
import torch
from lightly.transforms import SimCLRTransform
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.rotation import RandomRotate, RandomRotateDegrees
from lightly.transforms.torchvision_v2_compatibility import ToTensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from mixco_lightly.data import device_transforms
from mixco_lightly.data.catalogue import get_dataset
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.transforms import create_pretrain_transform
from tests.pretended_gpu import pretended_gpu

LEVEL = 1 / 255
# Height and width of the image, and size of the views: enlarged, alike and reduced.
SIZES = [((8, 8), 32), ((32, 32), 32), ((64, 64), 32), ((64, 64), 64), ((48, 64), 32)]
SETTINGS = [("digits", 8, 32), ("cifar10", 32, 32), ("tiny-imagenet", 64, 64)]


def noise(height, width=None, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, height, width or height)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def coordinates(height, width):
    """Red is the column and green the row, from 0 to 255; blue is a smooth bump."""
    row, column = torch.meshgrid(
        torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij"
    )
    bump = torch.sin(9 * column) * torch.cos(7 * row) / 2 + 0.5
    return (torch.stack([column, row, bump]) * 255).round().byte()


def plain(*colours):
    """An image of equal stripes."""
    stripes = [torch.tensor(colour, dtype=torch.uint8)[:, None, None] for colour in colours]
    return torch.cat([stripe.expand(3, 12, 12 // len(colours)) for stripe in stripes], dim=2)


def steps(*transforms):
    return MultiViewTransform([v2.Compose([*transforms, ToTensor()])])


def seed_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - Lightly's blur draws from it


def lightly_views(transform, image, count, seed=0):
    """First views of one image (3, H, W), one by one in Pillow."""
    seed_all(seed)
    pil = functional.to_pil_image(image)
    return torch.stack([transform.transforms[0](pil) for _ in range(count)])


def device_views(transform, image, count, seed=1):
    """First views of one image (3, H, W)."""
    seed_all(seed)
    # In small batches, since the order of the colour jitter is drawn for each batch.
    device_transform = DeviceTransform(MultiViewTransform(transform.transforms[:1]))
    batches = image.expand(count, -1, -1, -1).split(50)
    return torch.cat([device_transform(batch)[0] for batch in batches])


def disagreements(one, other, shift=0.0):
    """Names of the statistics whose mean or standard deviation differs.

    The variance of a sample's variance is (m4 - s^4) / n; half of its root over s is the standard
    error of the standard deviation s.
    """
    names = []
    for name in one:
        samples = [sample[name].double() for sample in (one, other)]
        means, stds, mean_errors, std_errors = [], [], [], []
        for sample in samples:
            std, n = sample.std(), len(sample)
            fourth = (sample - sample.mean()).pow(4).mean()
            means.append(sample.mean())
            stds.append(std)
            mean_errors.append(std / n**0.5)
            std_errors.append((fourth - std**4).clamp(min=0).div(n).sqrt() / (2 * std + 1e-12))
        for kind, values, errors in [("mean", means, mean_errors), ("std", stds, std_errors)]:
            if abs(values[0] - values[1]) > 4 * torch.stack(errors).norm() + shift:
                names.append(f"{kind} of {name}: {values[0]:.4f} and {values[1]:.4f}")
    return names


def whole_view(views):
    """Statistics (n,) that every step of a transform changes."""
    grey = (views.amax(1) - views.amin(1)).amax((1, 2)) < 2e-3
    left, right = views[:, 0].chunk(2, dim=2)
    facts = {f"mean {c}": views[:, c].mean((1, 2)) for c in range(3)}
    facts |= {f"contrast {c}": views[:, c].std((1, 2)) for c in range(3)}
    facts |= {
        "smoothness across": views.diff(dim=3).abs().mean((1, 2, 3)),
        "smoothness down": views.diff(dim=2).abs().mean((1, 2, 3)),
        "sides": left.mean((1, 2)) - right.mean((1, 2)),
        "grey": grey.float(),
        "black corner": (views[:, :, 0, 0] == views.amin((2, 3))).all(1).float(),
    }
    return facts


def crop_box(views):
    """Where a crop of :func:`coordinates` was taken, in parts of the image."""
    x, y = views[:, 0].mean(1), views[:, 1].mean(2)
    width, height = x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]
    return {
        "centre x": x.mean(1),
        "centre y": y.mean(1),
        "width": width.abs(),
        "height": height.abs(),
        "aspect": (width.abs() + 0.05).log() - (height.abs() + 0.05).log(),
        "flipped across": (width < 0).float(),
        "flipped down": (height < 0).float(),
    }


def colour(views):
    """Darkest and brightest value of each channel."""
    facts = {f"lowest {c}": views[:, c].amin((1, 2)) for c in range(3)}
    facts |= {f"highest {c}": views[:, c].amax((1, 2)) for c in range(3)}
    return facts


def only_crop(size, min_scale=0.2, hf_prob=0.5, vf_prob=0.25):
    return SimCLRTransform(
        size,
        cj_prob=0,
        random_gray_scale=0,
        gaussian_blur=0,
        min_scale=min_scale,
        hf_prob=hf_prob,
        vf_prob=vf_prob,
        normalize=None,
    )


@pytest.mark.parametrize("method", ["moco", "simclr"])
@pytest.mark.parametrize(("dataset", "size", "image_size"), SETTINGS)
def test_views_have_the_distribution_of_lightly_s(method, dataset, size, image_size):
    transform = create_pretrain_transform(method, get_dataset(dataset).facts, image_size)
    image = coordinates(size, size)
    if dataset == "digits":
        image = image[2:].expand(3, -1, -1)
    ours = whole_view(device_views(transform, image, 500))
    theirs = whole_view(lightly_views(transform, image, 250))
    # Normalisation divides grey levels by a standard deviation.
    shift = LEVEL / min(get_dataset(dataset).facts.std)
    assert disagreements(ours, theirs, shift) == []
    other = create_pretrain_transform(method, get_dataset(dataset).facts, image_size, min_scale=1.0)
    assert disagreements(whole_view(device_views(other, image, 500)), theirs, shift)


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_crops_and_flips_have_the_distribution_of_lightly_s(shape, size):
    image = coordinates(*shape)
    theirs = crop_box(lightly_views(only_crop(size), image, 500))

    def compare(**options):
        ours = crop_box(device_views(only_crop(size, **options), image, 900))
        return disagreements(ours, theirs, LEVEL / 2)

    assert compare() == []
    assert any("width" in name for name in compare(min_scale=0.35))
    assert [name.split(":")[0] for name in compare(hf_prob=0.7)][:1] == ["mean of flipped across"]
    assert [name.split(":")[0] for name in compare(vf_prob=0.45)][:1] == ["mean of flipped down"]


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_a_crop_is_resized_with_antialiasing_as_torchvision_does(shape, size):
    images = noise(*shape, count=20)
    transform = DeviceTransform(steps(v2.RandomResizedCrop(size, scale=(0.2, 1.0))))
    torch.manual_seed(0)
    (views,) = transform(images)
    # The crop draws first: the same seed gives kornia's boxes again.
    torch.manual_seed(0)
    crop = kornia.augmentation.RandomResizedCrop((size, size), scale=(0.2, 1.0))
    boxes = crop.generate_parameters(images.shape)["src"].long()
    for image, view, box in zip(images, views, boxes, strict=True):
        (left, top), (right, bottom) = box[0].tolist(), (box[2] + 1).tolist()
        place = (top, left, bottom - top, right - left)
        expected = functional.resized_crop(image / 255, *place, [size, size], antialias=True)
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_the_boxes_are_not_all_the_whole_image():
    # Guards the test above.
    crop = kornia.augmentation.RandomResizedCrop((32, 32), scale=(0.2, 1.0))
    torch.manual_seed(0)
    boxes = crop.generate_parameters(torch.Size([20, 3, 32, 32]))["src"]
    assert len(boxes.flatten(1).unique(dim=0)) == 20


FACTORS = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
}


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("part", [0.3, 0.8])
def test_a_colour_factor_means_what_torchvision_means(name, part):
    factor = part - 0.5 if name == "hue" else 2 * part
    images = torch.cat(
        [noise(8, count=3), plain((9, 9, 9), (200, 200, 80), (0, 0, 0))[None, :, :8, :8]]
    )
    transform = DeviceTransform(steps(v2.ColorJitter(**{name: (factor, factor)})))
    # torchvision's weights of grey are rounded: 0.2989 for red.
    expected = FACTORS[name](images / 255, factor)
    torch.testing.assert_close(transform(images)[0], expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, images / 255, atol=0.05)


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_colour_jitter_has_the_distribution_of_torchvision_s(name, strength):
    # Above 1 the factors begin at 0, which for the hue has no meaning.
    strength = strength / 4 if name == "hue" else strength
    image = plain((180, 120, 60), (60, 90, 110))
    theirs = lightly_views(steps(v2.ColorJitter(**{name: strength})), image, 1500)

    def compare(value):
        ours = device_views(steps(v2.ColorJitter(**{name: value})), image, 4000)
        return disagreements(colour(ours), colour(theirs), 0.75 * LEVEL)

    assert compare(strength) == []
    assert compare(0.75 * strength)


def test_the_whole_jitter_has_the_distribution_of_torchvision_s():
    image = plain((180, 120, 60), (60, 90, 110))

    def jitter(probability, strength=0.8):
        whole = v2.ColorJitter(strength, strength, strength, strength / 4)
        return steps(v2.RandomApply([whole], p=probability), v2.RandomGrayscale(0.2))

    theirs = colour(lightly_views(jitter(0.8), image, 1200))

    def compare(*options):
        return disagreements(colour(device_views(jitter(*options), image, 4000)), theirs, LEVEL)

    assert compare(0.8) == []
    assert compare(0.6)
    assert compare(0.8, 0.6)


def test_images_turn_grey_at_the_given_rate_with_pillow_s_weights():
    image = plain((180, 120, 60), (10, 90, 210))
    theirs = colour(lightly_views(steps(v2.RandomGrayscale(0.2)), image, 1200))

    def compare(probability):
        ours = device_views(steps(v2.RandomGrayscale(probability)), image, 4000)
        return disagreements(colour(ours), theirs, LEVEL / 2)

    assert compare(0.2) == []
    assert compare(0.3)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 0.9, 1.4, 2.0])
@pytest.mark.parametrize("shape", [(64, 64), (5, 40)])
def test_blur_is_pillow_s(sigma, shape):
    image = noise(*shape)
    transform = steps(GaussianBlur(prob=1.0, sigmas=(sigma, sigma)))
    pillow = lightly_views(transform, image[0], 1)
    # Pillow rounds to a whole grey level after each of six passes.
    difference = (device_views(transform, image[0], 1) - pillow).abs()
    assert difference.max() < 4 * LEVEL
    assert difference.mean() < 1.5 * LEVEL
    other = steps(GaussianBlur(prob=1.0, sigmas=(1.4 * sigma + 0.1, 1.4 * sigma + 0.1)))
    assert (device_views(other, image[0], 1) - pillow).abs().mean() > 1.5 * LEVEL


def test_blurred_noise_has_the_spread_of_pillow_s():
    image = noise(32)[0]

    def spread(views):
        return {"spread": views.std((1, 2, 3)), "blurred": (views.std((1, 2, 3)) < 0.285).float()}

    theirs = spread(lightly_views(steps(GaussianBlur(prob=0.5, sigmas=(0.1, 2))), image, 1200))

    def compare(prob, high):
        transform = steps(GaussianBlur(prob=prob, sigmas=(0.1, high)))
        return disagreements(spread(device_views(transform, image, 2500)), theirs, LEVEL)

    assert compare(0.5, 2) == []
    assert compare(0.6, 2)
    assert compare(0.5, 1.5)


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("angle", [90, 20, -35])
def test_a_rotation_is_counter_clockwise_about_the_centre_as_pillow_s(size, angle):
    image = noise(size)[0]
    transforms = [steps(RandomRotateDegrees(1.0, (angle, angle)))]
    transforms += [steps(RandomRotate(1.0, angle))]
    for transform in transforms:
        ours, theirs = device_views(transform, image, 1), lightly_views(transform, image, 1)
        # A pixel whose place is half way between two others may be either.
        different = ((ours - theirs).abs() > LEVEL / 2).float().mean()
        assert different < 0.005
        assert ((image / 255 - theirs[0]).abs() > LEVEL / 2).float().mean() > 0.9


def test_rotations_have_the_distribution_of_lightly_s():
    # A bar through the centre: the column of its upper end shows the angle.
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, :, 15:17] = 255

    def angle(views):
        top = views[:, 0, 4]
        column = (top * torch.arange(32.0)).sum(1) / top.sum(1)
        return {"angle": torch.atan((15.5 - column) / 11.5).rad2deg()}

    theirs = angle(lightly_views(steps(RandomRotateDegrees(0.5, (-5, 20))), image, 1200))

    def compare(probability, low, high):
        transform = steps(RandomRotateDegrees(probability, (low, high)))
        return disagreements(angle(device_views(transform, image, 2500)), theirs)

    assert compare(0.5, -5, 20) == []
    assert compare(0.6, -5, 20)
    assert compare(0.5, -20, 5)
    assert compare(0.5, -5, 17)


@pytest.mark.parametrize("method", ["moco", "simclr"])
@pytest.mark.parametrize(("dataset", "size", "image_size"), SETTINGS)
def test_two_float_views_of_the_size_differ(method, dataset, size, image_size):
    torch.manual_seed(0)
    views = DeviceTransform(
        create_pretrain_transform(method, get_dataset(dataset).facts, image_size)
    )(noise(size, count=5))
    assert [tuple(view.shape) for view in views] == [(5, 3, image_size, image_size)] * 2
    assert [view.dtype for view in views] == [torch.float32] * 2
    assert all(not torch.equal(one, two) for one, two in zip(*views, strict=True))


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "tiny-imagenet"])
def test_views_are_normalised_with_the_statistics_of_the_dataset(dataset):
    # Colour jitter leaves black black, and can darken white but not make it whiter.
    facts = get_dataset(dataset).facts
    mean, std = torch.tensor(facts.mean), torch.tensor(facts.std)
    transform = create_pretrain_transform("moco", get_dataset(dataset).facts, 32)
    for value in (0, 1):
        image = torch.full((3, 32, 32), 255 * value, dtype=torch.uint8)
        brightest = device_views(transform, image, 40).amax(dim=(0, 2, 3))
        torch.testing.assert_close(brightest, (value - mean) / std)


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomResizedCrop(64, scale=(0.2, 1.0)),
        v2.ColorJitter(brightness=0.8),
        v2.ColorJitter(contrast=0.8),
        v2.ColorJitter(saturation=0.8),
        v2.ColorJitter(hue=0.4),
        GaussianBlur(prob=1.0, sigmas=(0.1, 2)),
        RandomRotateDegrees(1.0, 40),
    ],
    ids=lambda transform: repr(transform).split("(")[0].split(" ")[0],
)
def test_each_image_has_random_parameters_of_its_own(transform):
    views = device_views(steps(transform), noise(64)[0], 30)
    assert len(views.flatten(1).unique(dim=0)) == 30


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        v2.RandomGrayscale(0.5),
        v2.RandomApply([v2.ColorJitter((0.5, 0.5))], p=0.5),
        RandomRotate(0.5),
    ],
    ids=lambda transform: repr(transform).split("(")[0].split(" ")[0],
)
def test_each_image_is_changed_or_not_on_its_own(transform):
    image = noise(16)[0]
    views = device_views(steps(transform), image, 100)
    changed = ((views - image / 255).abs().amax((1, 2, 3)) > 1e-6).sum()
    assert 30 <= changed <= 70  # 50 and four standard deviations of 5


def test_views_depend_on_torch_s_seed_alone():
    transform = DeviceTransform(
        create_pretrain_transform("simclr", get_dataset("tiny-imagenet").facts, 64)
    )
    images = noise(64, count=8)
    results = []
    for torch_seed, numpy_seed in [(0, 0), (0, 1), (1, 0)]:
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)  # noqa: NPY002
        results.append(torch.cat(transform(images)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_given_images_stay_as_they_were():
    images = noise(32, count=20)
    before = images.clone()
    DeviceTransform(steps(v2.RandomHorizontalFlip(0.9), v2.RandomGrayscale(0.9)))(images)
    assert torch.equal(images, before)


def test_a_view_does_not_change_another_one():
    flip = v2.Compose([v2.RandomHorizontalFlip(1.0), ToTensor()])
    images = noise(32, count=4)
    flipped, plain_view = DeviceTransform(MultiViewTransform([flip, v2.Compose([ToTensor()])]))(
        images
    )
    assert torch.equal(plain_view, images / 255)
    assert torch.equal(flipped, plain_view.flip(3))


@pytest.mark.parametrize(
    ("dataset", "image_size", "count"),
    # Crop and normalisation, with a rotation; with flip, jitter and grey; and with blur.
    [("digits", 32, 3), ("cifar10", 32, 5), ("tiny-imagenet", 64, 6)],
)
def test_steps_of_probability_zero_are_left_out(dataset, image_size, count):
    transform = DeviceTransform(
        create_pretrain_transform("moco", get_dataset(dataset).facts, image_size)
    )
    assert [len(view) for view in transform.views] == [count, count]


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (v2.RandomSolarize(128), "RandomSolarize"),
        (v2.RandomApply([v2.RandomSolarize(128)], p=0.5), "RandomSolarize"),
        (
            v2.RandomResizedCrop(32, interpolation=InterpolationMode.BICUBIC),
            "RandomResizedCrop.*bicubic",
        ),
        (v2.RandomRotation(10, expand=True), "RandomRotation.*expand=True"),
        (
            v2.RandomRotation(10, interpolation=InterpolationMode.BILINEAR),
            "RandomRotation.*bilinear",
        ),
        (v2.RandomRotation(10, fill=1), "RandomRotation.*fill=1"),
    ],
)
def test_a_transform_without_a_device_version_is_named(transform, name):
    with pytest.raises(ValueError, match=f"(?i)no device version of the transform .*{name}"):
        DeviceTransform(steps(transform))


def test_a_view_that_is_no_compose_is_named():
    with pytest.raises(ValueError, match=r"must be a torchvision.*Compose, got.*RandomSolarize"):
        DeviceTransform(MultiViewTransform([v2.RandomSolarize(128)]))


@pytest.mark.parametrize(
    "images",
    [noise(8).float(), noise(8)[0], noise(8)[:, :1], noise(8).permute(0, 2, 3, 1)],
    ids=["float", "one", "grey", "channels-last"],
)
def test_images_of_another_type_or_shape_are_refused(images):
    transform = DeviceTransform(only_crop(8))
    with pytest.raises(ValueError, match=r"uint8 of shape \(N, 3, H, W\), got"):
        transform(images)


def test_no_images_give_no_views():
    transform = DeviceTransform(
        create_pretrain_transform("moco", get_dataset("tiny-imagenet").facts, 64)
    )
    assert [tuple(view.shape) for view in transform(noise(64)[:0])] == [(0, 3, 64, 64)] * 2


def test_there_is_nothing_to_learn_or_to_save():
    transform = DeviceTransform(create_pretrain_transform("moco", get_dataset("cifar10").facts, 32))
    assert not transform.state_dict()
    assert not list(transform.parameters())
    assert not any(view.requires_grad for view in transform(noise(32)))


def test_autocast_changes_no_view():
    transform = DeviceTransform(
        create_pretrain_transform("moco", get_dataset("tiny-imagenet").facts, 64)
    )
    images = noise(64, count=4)
    torch.manual_seed(0)
    expected = torch.cat(transform(images))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.cat(transform(images)), expected)


def test_a_pickled_transform_draws_the_same_views():
    transform = DeviceTransform(
        create_pretrain_transform("moco", get_dataset("tiny-imagenet").facts, 64)
    )
    images = noise(64, count=4)
    torch.manual_seed(0)
    expected = torch.cat(transform(images))
    copy = pickle.loads(pickle.dumps(transform))  # noqa: S301
    torch.manual_seed(0)
    assert torch.equal(torch.cat(copy(images)), expected)


@pytest.mark.parametrize("method", ["moco", "simclr", "selfcon"])
@pytest.mark.parametrize(("dataset", "size", "image_size"), SETTINGS)
def test_views_on_a_gpu_are_those_of_the_cpu_bit_by_bit_without_waits(
    method, dataset, size, image_size
):
    transform = DeviceTransform(
        create_pretrain_transform(method, get_dataset(dataset).facts, image_size)
    )
    assert_same_on_a_gpu(transform, noise(size, count=12))


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomResizedCrop(24, scale=(0.2, 1.0)),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        v2.ColorJitter(0.8, 0.8, 0.8, 0.2),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.5),
        v2.RandomGrayscale(0.5),
        GaussianBlur(prob=0.5, sigmas=(0.1, 2)),
        RandomRotateDegrees(0.5, 40),
        RandomRotate(0.5),
        v2.RandomRotation(20),
        v2.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
    ],
    ids=lambda transform: repr(transform).split("(")[0].split(" ")[0],
)
@pytest.mark.parametrize("size", [32, 64])
def test_each_step_on_a_gpu_is_that_of_the_cpu_bit_by_bit_without_waits(transform, size):
    assert_same_on_a_gpu(DeviceTransform(steps(transform)), noise(size, count=12))


def assert_same_on_a_gpu(transform, images):
    torch.manual_seed(0)
    expected, state = transform(images), torch.get_rng_state()
    with pretended_gpu() as gpu:
        on_gpu = images.to("cuda", non_blocking=True)
        torch.manual_seed(0)
        views = transform.to("cuda")(on_gpu)
        assert gpu.waits == []
        assert {view.device.type for view in views} == {"cuda"}
        for view, wanted in zip(views, expected, strict=True):
            assert torch.equal(gpu.values(view), wanted)
        assert torch.equal(torch.get_rng_state(), state)


def test_missing_kornia_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ImportError, match="pip install kornia"):
        DeviceTransform(create_pretrain_transform("moco", get_dataset("cifar10").facts, 32))


def test_the_module_is_imported_without_kornia(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    assert "DeviceTransform" in runpy.run_path(device_transforms.__file__)
