import pytest
import torch
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from mixco_lightly.data.catalogue import DATASETS, get_dataset
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.transforms import (
    create_pretrain_transform,
    create_probe_transform,
    create_test_transform,
)

METHODS = ["moco", "simclr"]


def noise_image(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


def half_white_image(side):
    """A white half on a black image, a little inside of the frame."""
    image = Image.new("RGB", (32, 32))
    box = {"left": (2, 2, 16, 30), "top": (2, 2, 30, 16)}[side]
    image.paste((255, 255, 255), box)
    return image


def find(transform, kind):
    return [part for part in transform.transforms[0].transform.transforms if isinstance(part, kind)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("image_size", [32, 64, 96])
def test_pretraining_gives_two_different_views_of_the_size(method, dataset, image_size):
    torch.manual_seed(0)
    views = create_pretrain_transform(method, get_dataset(dataset).facts, image_size)(
        noise_image(40)
    )
    assert [view.shape for view in views] == [(3, image_size, image_size)] * 2
    assert all(view.dtype == torch.float32 for view in views)
    assert not torch.equal(*views)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize(("width", "height"), [(8, 8), (64, 64), (100, 60)])
@pytest.mark.parametrize("image_size", [32, 64, 224])
def test_test_images_have_the_size(dataset, width, height, image_size):
    image = create_test_transform(get_dataset(dataset).facts, image_size)(
        Image.new("RGB", (width, height))
    )
    assert image.shape == (3, image_size, image_size)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", ["left", "top"])
def test_digits_are_never_flipped(method, side):
    torch.manual_seed(0)
    transform = create_pretrain_transform(method, get_dataset("digits").facts, 32, min_scale=0.9)
    image = half_white_image(side)
    dim = {"left": 2, "top": 1}[side]
    for _ in range(40):
        for view in transform(image):
            near, far = view.chunk(2, dim=dim)
            assert near.mean() > far.mean()


@pytest.mark.parametrize("method", METHODS)
def test_cifar_is_flipped_left_to_right_only(method):
    # Guards the test above: the same check sees the flips where there are some.
    torch.manual_seed(0)
    transform = create_pretrain_transform(method, get_dataset("cifar10").facts, 32, min_scale=0.9)
    flipped = {"left": 0, "top": 0}
    for side, dim in [("left", 2), ("top", 1)]:
        for _ in range(20):
            for view in transform(half_white_image(side)):
                near, far = view.chunk(2, dim=dim)
                flipped[side] += bool(near.mean() < far.mean())
    assert 5 < flipped["left"] < 35
    assert flipped["top"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_digits_stay_grey_with_their_contrast(method):
    torch.manual_seed(0)
    transform = create_pretrain_transform(method, get_dataset("digits").facts, 32)
    info = get_dataset("digits").facts
    grey = Image.new("RGB", (8, 8), (128, 128, 128))
    # Corners that the rotation turns in are black; the middle shows the image itself.
    expected = (128 / 255 - info.mean[0]) / info.std[0]
    for _ in range(20):
        for view in transform(grey):
            assert torch.equal(view[0], view[1])
            assert torch.equal(view[0], view[2])
            torch.testing.assert_close(view[:, 12:20, 12:20], torch.full((3, 8, 8), expected))


@pytest.mark.parametrize("method", METHODS)
def test_digits_are_turned_a_little(method):
    torch.manual_seed(0)
    transform = create_pretrain_transform(method, get_dataset("digits").facts, 32, min_scale=1.0)
    # Only a rotation turns black corners into a white image.
    views = [view for _ in range(20) for view in transform(Image.new("RGB", (32, 32), "white"))]
    turned = sum(bool(view.min() < view.max()) for view in views)
    assert 10 < turned < 30


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("image_size", "blurred"), [(28, False), (32, False), (64, True)])
def test_images_up_to_32_pixels_are_not_blurred(method, image_size, blurred):
    (blur,) = find(
        create_pretrain_transform(method, get_dataset("cifar10").facts, image_size), GaussianBlur
    )
    assert (blur.prob > 0) == blurred


@pytest.mark.parametrize("method", METHODS)
def test_small_images_get_half_the_colour_jitter(method):
    def brightness(image_size):
        torch.manual_seed(0)
        transform = create_pretrain_transform(method, get_dataset("cifar10").facts, image_size)
        grey = Image.new("RGB", (8, 8), (128, 128, 128))
        info = get_dataset("cifar10").facts
        views = [view.mean((1, 2)) for _ in range(80) for view in transform(grey)]
        return (torch.stack(views) * torch.tensor(info.std)).std().item()

    assert brightness(32) < 0.75 * brightness(64)


@pytest.mark.parametrize("image_size", [32, 64, 224])
def test_selfcon_has_its_authors_steps_and_cross_entropy_crops_and_flips_only(image_size):
    selfcon, cross_entropy = (
        create_pretrain_transform(method, get_dataset("cifar100").facts, image_size)
        for method in ("selfcon", "cross-entropy")
    )
    for transform, jitters, greys in [(selfcon, 0.8, 0.2), (cross_entropy, 0.0, 0.0)]:
        (crop,) = find(transform, v2.RandomResizedCrop)
        assert (tuple(crop.size), tuple(crop.scale)) == ((image_size, image_size), (0.2, 1.0))
        assert [flip.p for flip in find(transform, v2.RandomHorizontalFlip)] == [0.5]
        (applied,) = find(transform, v2.RandomApply)
        assert applied.p == jitters
        (jitter,) = applied.transforms
        assert (jitter.brightness, jitter.contrast, jitter.saturation) == ((0.6, 1.4),) * 3
        assert jitter.hue == (-0.1, 0.1)
        assert [grey.p for grey in find(transform, v2.RandomGrayscale)] == [greys]
        assert [blur.prob for blur in find(transform, GaussianBlur)] == [0.0]


@pytest.mark.parametrize("method", ["simclr", "selfcon", "cross-entropy"])
def test_one_view_is_the_first_of_two_and_of_three(method):
    image = noise_image(40)
    views = []
    for num_views in (1, 2, 3):
        torch.manual_seed(0)
        transform = create_pretrain_transform(
            method, get_dataset("cifar10").facts, 32, num_views=num_views
        )
        views.append(transform(image))
    assert [len(x) for x in views] == [1, 2, 3]
    assert torch.equal(views[0][0], views[2][0])
    assert torch.equal(views[1][1], views[2][1])
    assert not torch.equal(views[2][1], views[2][2])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        create_pretrain_transform(method, get_dataset("cifar10").facts, 32, num_views=0)


@pytest.mark.parametrize("method", METHODS)
def test_min_scale_bounds_the_crop(method):
    # Each pixel of a ramp is its column: a crop's range of grey values shows its width.
    ramp = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    std = get_dataset("digits").facts.std[0]

    def smallest_crop(**options):
        torch.manual_seed(0)
        transform = create_pretrain_transform(method, get_dataset("digits").facts, 32, **options)
        views = [view for _ in range(60) for view in transform(ramp)]
        columns = [view[0, :, 16] * std for view in views]
        return min((column.max() - column.min()).item() for column in columns)

    assert smallest_crop(min_scale=0.9) > 0.75
    assert 0.5 < smallest_crop() < 0.75  # digits' default 0.5 gives sides of about 0.61 to 0.82
    assert 0.3 < smallest_crop(min_scale=0.2) < 0.6  # sides of about 0.39 to 0.52
    assert smallest_crop(min_scale=0.01) < 0.3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_views_are_normalised_with_the_statistics_of_the_dataset(method, dataset):
    # Colour jitter leaves black black, and can darken white but not make it whiter.
    torch.manual_seed(0)
    facts = get_dataset(dataset).facts
    mean, std = torch.tensor(facts.mean), torch.tensor(facts.std)
    transform = create_pretrain_transform(method, get_dataset(dataset).facts, 32)
    for colour, value in [("black", 0.0), ("white", 1.0)]:
        image = Image.new("RGB", (32, 32), colour)
        views = [view for _ in range(20) for view in transform(image)]
        brightest = torch.stack(views).amax(dim=(0, 2, 3))
        torch.testing.assert_close(brightest, (value - mean) / std)


@pytest.mark.parametrize("dataset", DATASETS)
def test_test_transform_maps_the_mean_to_zero_and_one_std_to_one(dataset):
    info = get_dataset(dataset).facts
    transform = create_test_transform(get_dataset(dataset).facts, 32)
    for deviation in (0, 1):
        colour = [m + deviation * s for m, s in zip(info.mean, info.std, strict=True)]
        image = Image.new("RGB", (32, 32), tuple(round(255 * value) for value in colour))
        # Half a grey level of rounding, in units of the std.
        tolerance = 0.51 / 255 / min(info.std)
        expected = torch.full((3, 32, 32), float(deviation))
        torch.testing.assert_close(transform(image), expected, rtol=0, atol=tolerance)


def test_test_transform_is_deterministic():
    transform = create_test_transform(get_dataset("cifar10").facts, 32)
    torch.manual_seed(0)
    one = transform(noise_image(40))
    torch.manual_seed(1)
    assert torch.equal(transform(noise_image(40)), one)


@pytest.mark.parametrize(("image_size", "frame_survives"), [(64, True), (224, False)])
def test_only_images_above_64_pixels_lose_their_frame(image_size, frame_survives):
    image = Image.new("RGB", (256, 256), "white")
    image.paste((0, 0, 0), (10, 10, 246, 246))
    result = create_test_transform(get_dataset("imagefolder").facts, image_size)(image)
    assert bool(result.max() > 1) == frame_survives


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="got 'byol'"):
        create_pretrain_transform("byol", get_dataset("digits").facts, 32)


@pytest.mark.parametrize(
    ("dataset", "min_scale", "expected"),
    [("cifar10", None, 0.2), ("digits", None, 0.5), ("digits", 0.3, 0.3)],
)
def test_smallest_crop_is_the_given_one_or_the_dataset_s(dataset, min_scale, expected):
    transform = create_pretrain_transform(
        "simclr", get_dataset(dataset).facts, 32, min_scale=min_scale
    )
    crop = transform.transforms[0].transform.transforms[0]
    assert tuple(crop.scale) == (expected, 1.0)


def test_a_smallest_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"min_scale must be in \(0, 1\], got 1\.5"):
        create_pretrain_transform("moco", get_dataset("cifar10").facts, 32, min_scale=1.5)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("image_size", [16, 64])
def test_probe_images_have_the_size_and_the_statistics_one_by_one_and_in_batches(
    dataset, image_size
):
    image = Image.new("RGB", (32, 32), (255, 51, 0))
    transform = create_probe_transform(get_dataset(dataset).facts, image_size)
    info = get_dataset(dataset).facts
    colour = (torch.tensor([1.0, 0.2, 0.0]) - torch.tensor(info.mean)) / torch.tensor(info.std)
    expected = colour[:, None, None].expand(3, image_size, image_size)
    torch.testing.assert_close(transform(image), expected)
    (batch,) = DeviceTransform(MultiViewTransform([transform]))(pil_to_tensor(image)[None])
    torch.testing.assert_close(batch[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_probe_images_are_flipped_and_cropped_to_8_percent_but_digits_are_not(dataset):
    torch.manual_seed(0)
    transform = create_probe_transform(
        get_dataset(dataset).facts.normalised((0, 0, 0), (1, 1, 1)), 32
    )
    # Green rises from the left to the right.
    pixels = torch.zeros(32, 32, 3)
    pixels[..., 1] = torch.linspace(0, 1, 32)
    image = Image.fromarray((255 * pixels).byte().numpy())
    rises = torch.stack([transform(image)[1].mean(dim=0).diff().mean() * 31 for _ in range(200)])
    flipped = (rises < 0).double().mean().item()
    assert flipped == (0 if dataset == "digits" else pytest.approx(0.5, abs=0.14))
    # The crop's width, as a part of the image's: at least sqrt(0.08 * 3/4) and sqrt(0.5 * 3/4).
    smallest = rises.abs().min().item()
    assert smallest > (0.55 if dataset == "digits" else 0.2)
    assert smallest < (0.7 if dataset == "digits" else 0.4)
