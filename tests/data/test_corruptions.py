import io

import numpy as np
import pytest
import torch
from PIL import Image

from mixco_lightly.data import ImageArray
from mixco_lightly.data.corruptions import (
    CORRUPTIONS,
    CorruptedImages,
    add_noise,
    blur,
    brighten,
    compress,
    pixelate,
    reduce_contrast,
)
from mixco_lightly.data.images import ImageFacts
from mixco_lightly.data.transforms import create_test_transform

FACTS = ImageFacts((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def rng():
    return np.random.default_rng(0)


def image_of(rows):
    """A grey image of three equal channels."""
    return torch.tensor(rows).expand(3, -1, -1).contiguous()


def test_contrast_is_a_part_of_the_distance_to_each_channels_mean():
    image = torch.tensor([[[0.0, 1.0]], [[0.2, 0.4]], [[0.5, 0.5]]])
    expected = torch.tensor([[[0.25, 0.75]], [[0.25, 0.35]], [[0.5, 0.5]]])
    torch.testing.assert_close(reduce_contrast(image, 0.5, rng()), expected)


def test_brightness_is_added_to_the_largest_channel_and_keeps_the_channels_ratios():
    image = torch.tensor([[[0.4, 0.0, 0.9]], [[0.2, 0.0, 0.45]], [[0.0, 0.0, 0.9]]])
    expected = torch.tensor([[[0.6, 0.2, 1.0]], [[0.3, 0.2, 0.5]], [[0.0, 0.2, 1.0]]])
    torch.testing.assert_close(brighten(image, 0.2, rng()), expected)


def test_pixels_are_means_of_blocks():
    image = image_of([[0.0, 0.2, 0.4, 0.4], [0.2, 0.4, 0.4, 0.4]] * 2)
    expected = image_of([[0.2, 0.2, 0.4, 0.4]] * 4)
    torch.testing.assert_close(pixelate(image, 0.5, rng()), expected)


def test_blur_is_a_gaussian_in_parts_of_the_side():
    image = torch.zeros(3, 17, 17)
    image[:, 8, 8] = 1
    blurred = blur(image, 1 / 17, rng())  # one pixel
    weights = torch.exp(-(torch.arange(-3, 4).float() ** 2) / 2)
    weights /= weights.sum()
    torch.testing.assert_close(blurred[0, 5:12, 5:12], weights.outer(weights))


def test_noise_has_the_strength_as_standard_deviation():
    noise = add_noise(torch.zeros(3, 64, 64), 0.08, rng())
    assert noise.std() == pytest.approx(0.08, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.003)


def test_jpeg_is_pillows():
    pixels = rng().integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=50)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    assert torch.equal(compress(image, 50, rng()), expected)


def make_corrupted(count=5, max_images=3, seed=0):
    pixels = rng().integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    images = ImageArray(pixels, list(range(count)), [str(x) for x in range(count)])
    corrupted = CorruptedImages(images, FACTS, max_images=max_images, seed=seed)
    corrupted.transform = create_test_transform(FACTS, 16)
    return pixels, corrupted


def test_each_chosen_image_is_there_in_every_kind_at_three_strengths_rounded_to_eight_bits():
    pixels, corrupted = make_corrupted()
    assert len(corrupted) == 6 * 3 * 3
    chosen = corrupted.targets[:3]
    assert len(set(chosen)) == 3
    assert corrupted.targets == chosen * 18
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (FACTS.mean, FACTS.std))
    conditions = [(f, strength) for f, strengths in CORRUPTIONS.values() for strength in strengths]
    for condition, (corrupt, strength) in enumerate(conditions):
        image, target = corrupted[3 * condition + 1]
        assert target == chosen[1]
        original = torch.from_numpy(pixels[target]).permute(2, 0, 1) / 255
        values = (image * std + mean) * 255
        torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-3)
        if corrupt is not add_noise:
            expected = corrupt(original, strength, rng()).clamp(0, 1) * 255
            assert (values - expected).abs().max() <= 0.501
    distances = [
        (corrupted[3 * condition][0] - corrupted[0][0]).abs().sum() for condition in range(1, 18)
    ]
    assert min(distances) > 0


def test_every_kind_destroys_more_at_a_higher_strength():
    coarse = image_of([[0.1, 0.7], [0.5, 0.3]])
    image = torch.nn.functional.interpolate(coarse.unsqueeze(0), 16, mode="bilinear")[0]
    image += 0.1 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    for kind, (corrupt, strengths) in CORRUPTIONS.items():
        distances = [
            (corrupt(image, strength, rng()).clamp(0, 1) - image).square().sum()
            for strength in strengths
        ]
        assert distances == sorted(distances), kind
        assert len(set(distances)) == 3, kind


def test_the_seed_decides_choice_and_noise_whatever_the_order():
    first, second, other = (make_corrupted(20, 3, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first[2][0], first[2][0])
    assert [torch.equal(first[i][0], second[i][0]) for i in reversed(range(9))] == [True] * 9
    assert first.targets != other.targets


def test_every_image_strength_and_seed_has_its_own_noise():
    grey = ImageArray(np.full((2, 16, 16), 128, dtype=np.uint8), [0, 1], ["a", "b"])
    noisy = []
    for seed in (0, 1):
        corrupted = CorruptedImages(grey, FACTS, max_images=2, seed=seed)
        corrupted.transform = create_test_transform(FACTS, 16)
        noisy += [corrupted[index][0] for index in range(4)]
    assert len({tuple(image.flatten().tolist()) for image in noisy}) == 8
