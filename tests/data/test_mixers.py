import math
import pickle
from collections import Counter
from typing import get_args

import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader

from mixco_lightly import MixCoCollate, MixCollate, Mixer, Mixture, mix_pairs
from mixco_lightly.data import (
    beta_weights,
    cut_views,
    cutmix,
    mask_mix,
    mixup,
    mixup_or_cutmix,
    pair_halves,
    pair_permuted,
    pair_reversed,
)
from mixco_lightly.data.mixing_names import MixingName, PairingName
from tests.data.test_collate import assert_same, make_samples
from tests.pretended_gpu import pretended_gpu

MIXINGS, PAIRINGS = get_args(MixingName), get_args(PairingName)
CUTS = {"cutmix": cutmix, "mask": mask_mix, "mixup-or-cutmix": mixup_or_cutmix}
mixings = pytest.mark.parametrize("mixing", MIXINGS)
pairings = pytest.mark.parametrize("pairing", PAIRINGS)
SIZES = [(9, 14), (8, 8), (1, 1), (1, 6)]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


# The definitions as loops: one weight, one box, one cell and one pixel at a time.


def list_pairs(pairing, n, rng):
    if pairing == "halves":
        return [(m, m + n // 2) for m in range(n // 2)]
    if pairing == "permuted":
        return list(enumerate(torch.randperm(n, generator=rng).tolist()))
    return [(m, n - 1 - m) for m in range(n)]


def list_boxes(weights, size, rng):
    """1 where the first image is kept: CutMix's authors' corners, clipped."""
    centres = [torch.randint(x, (len(weights),), generator=rng).tolist() for x in size]
    height, width = size
    masks = []
    for lam, y, x in zip(weights, *centres, strict=True):
        cut_h, cut_w = (int(length * math.sqrt(1 - lam)) for length in size)
        top, bottom = max(y - cut_h // 2, 0), min(y + cut_h // 2, height)
        left, right = max(x - cut_w // 2, 0), min(x + cut_w // 2, width)
        mask = [[1.0] * width for _ in range(height)]
        for i in range(top, bottom):
            for j in range(left, right):
                mask[i][j] = 0.0
        masks.append(mask)
    return masks


def list_block_masks(weights, size, rng, grid=8, blocks=12):
    """1 where a block shows the first image; blocks are filled one after the other."""
    uniform = torch.rand(4, len(weights), blocks, generator=rng).tolist()
    turns = torch.rand(len(weights), 1, 1, generator=rng).flatten().tolist()
    masks = []
    for b, lam in enumerate(weights):
        needed = round(lam * grid**2)
        angle = 2 * math.pi * turns[b]
        cells = [(i, j) for i in range(grid) for j in range(grid)]
        cells.sort(key=lambda cell: math.cos(angle) * cell[0] + math.sin(angle) * cell[1])
        shown = []
        for k in range(blocks + 1):
            inside = cells
            if k < blocks:
                u, v, place_y, place_x = (uniform[x][b][k] for x in range(4))
                area, aspect = 4 + max(needed - 4, 0) * u, 0.3 ** (2 * v - 1)
                h, w = (
                    min(max(round(math.sqrt(side)), 1), grid - 1)
                    for side in (area * aspect, area / aspect)
                )
                top, left = int((grid - h + 1) * place_y), int((grid - w + 1) * place_x)
                inside = [c for c in cells if top <= c[0] < top + h and left <= c[1] < left + w]
            shown += [cell for cell in inside if cell not in shown][: needed - len(shown)]
        height, width = size
        masks.append(
            [
                [float((i * grid // height, j * grid // width) in shown) for j in range(width)]
                for i in range(height)
            ]
        )
    return masks


def list_weight_maps(mixing, weights, size, rng):
    """The weight of the first image at each pixel."""
    plain = [[[lam] * size[1] for _ in range(size[0])] for lam in weights]
    if mixing == "mixup":
        return plain
    if mixing == "mask":
        return list_block_masks(weights, size, rng)
    masks = list_boxes(weights, size, rng)
    is_mixup = mixing == "mixup-or-cutmix" and torch.rand((), generator=rng) < 0.5
    return plain if is_mixup else masks


def mix_by_loops(images, mixer, seed):
    rng = generator(seed)
    n, channels, *size = images.shape
    pairs = list_pairs(mixer.pairing, n, rng)
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    weights = torch.rand(1 if mixer.shared_weight else len(pairs), generator=rng, dtype=dtype)
    weights = [max(x, 1 - x) if mixer.folded else x for x in weights.tolist()]
    maps = list_weight_maps(mixer.mixing, weights, size, rng)
    maps = maps * len(pairs) if mixer.shared_weight else maps
    values = images.double().tolist()
    mixed = [
        [
            [
                [
                    maps[m][i][j] * values[a][c][i][j] + (1 - maps[m][i][j]) * values[b][c][i][j]
                    for j in range(size[1])
                ]
                for i in range(size[0])
            ]
            for c in range(channels)
        ]
        for m, (a, b) in enumerate(pairs)
    ]
    lam = [math.fsum(x for row in table for x in row) / math.prod(size) for table in maps]
    return torch.tensor(mixed, dtype=torch.float64), pairs, torch.tensor(lam, dtype=torch.float64)


@mixings
@pairings
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float16, 2e-3),
        (torch.bfloat16, 2e-2),
        (torch.float32, 1e-6),
        (torch.float64, 1e-12),
    ],
)
def test_every_mixture_is_its_definition_as_a_loop(mixing, pairing, shared, dtype, tolerance):
    for seed, size in enumerate(SIZES):
        images = rand(5, 2, *size, seed=seed, dtype=dtype)
        original = images.clone()
        mixer = Mixer(mixing, pairing, shared_weight=shared, folded=bool(seed % 2))
        mixed, first, second, lam = mixer(images, generator(seed))
        expected, pairs, weights = mix_by_loops(images, mixer, seed)

        assert list(zip(first.tolist(), second.tolist(), strict=True)) == pairs
        assert first.dtype == second.dtype == torch.int64
        assert mixed.dtype == dtype
        assert lam.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(lam.double(), weights, rtol=0, atol=1e-6)
        is_cut = ((weights * math.prod(size)) % 1 == 0).all()
        torch.testing.assert_close(
            mixed.double(), expected, rtol=0, atol=0 if is_cut else tolerance
        )
        assert torch.equal(images, original)


@pytest.mark.parametrize("alpha", [1.0, 0.2])
@pytest.mark.parametrize("n", [2, 7, 8])
def test_the_default_mixer_is_mix_pairs_bit_by_bit(alpha, n):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        images = rand(n, 3, 5, 4, dtype=dtype)
        expected = mix_pairs(images, alpha, generator(3))
        for mixer in (Mixer(alpha=alpha), Mixer.mixco(alpha=alpha)):
            assert_same(mixer(images, generator(3)), expected)


@mixings
@pairings
@pytest.mark.parametrize("shared", [False, True])
def test_constant_images_a_and_b_mix_to_the_mean_lam_a_plus_one_minus_lam_b(
    mixing, pairing, shared
):
    for seed in range(8):
        size = SIZES[seed % len(SIZES)]
        values = rand(7, seed=seed, dtype=torch.float64)
        images = values.view(7, 1, 1, 1).expand(7, 3, *size)
        mixed, first, second, lam = Mixer(mixing, pairing, 0.7, shared)(images, generator(seed))
        expected = lam * values[first] + (1 - lam) * values[second]
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mix", [cutmix, mask_mix])
def test_lam_is_the_true_area_of_the_first_image(mix):
    # Each image has the value of its index, so that each pixel tells which image it is of.
    images = torch.arange(600.0).view(600, 1, 1, 1).expand(600, 2, 20, 24)
    first, second = pair_halves(600)
    drawn = rand(300, seed=1)
    mixed, _, _, lam = mix(images, first, second, drawn, generator(0))
    is_first = mixed == first.view(-1, 1, 1, 1)
    assert torch.equal(is_first, mixed != second.view(-1, 1, 1, 1))
    for m in range(300):
        assert lam[m].item() == pytest.approx(is_first[m].sum().item() / (2 * 20 * 24), abs=1e-6)
    # A clipped box is smaller than what was drawn.
    assert (lam != drawn).any()
    if mix is cutmix:
        assert (lam - drawn).min() > -1e-6


@mixings
def test_one_weight_for_all_is_one_box_and_one_mask_for_all(mixing):
    images = torch.cat([torch.ones(30, 1, 16, 16), torch.zeros(30, 1, 16, 16)])
    for seed in range(4):
        shared = Mixer(mixing, shared_weight=True)(images, generator(seed))
        assert shared.lam.shape == (30,)
        assert shared.lam.is_contiguous()
        assert (shared.lam == shared.lam[0]).all()
        assert (shared.images == shared.images[0]).all()
        each = Mixer(mixing)(images, generator(seed))
        assert len(each.images.flatten(1).unique(dim=0)) > 20


def test_permuted_pairs_of_the_half_swap_with_mirrored_weights_are_the_halves_each_twice():
    images, lam = rand(8, 3, 5, 5, dtype=torch.float64), rand(4, dtype=torch.float64)
    halves = mixup(images, *pair_halves(8), lam)
    swapped = torch.arange(8).roll(4)
    both = mixup(images, torch.arange(8), swapped, torch.cat([lam, 1 - lam]))
    torch.testing.assert_close(both.images, halves.images.repeat(2, 1, 1, 1))
    assert both.first[4:].tolist() == halves.second.tolist()
    assert both.second[4:].tolist() == halves.first.tolist()


@pytest.mark.parametrize("n", [6, 7])
def test_reversed_mixtures_are_those_of_the_exchanged_pairs(n):
    images = rand(n, 3, 5, 5, dtype=torch.float64)
    mixed, first, second, lam = Mixer(pairing="reversed", shared_weight=True)(images)
    torch.testing.assert_close(mixed.flip(0), mixup(images, second, first, lam).images)
    assert torch.equal(second.flip(0), first)
    if n % 2:  # the middle image has only itself
        assert first[3] == second[3] == 3
        torch.testing.assert_close(mixed[3], images[3])


@mixings
def test_an_image_that_is_its_own_partner_stays_as_it_is(mixing):
    # A permutation may have fixed points, as in i-Mix's code.
    images, itself = rand(5, 3, 9, 9), torch.arange(5)
    lam = rand(5)
    if mixing == "mixup":
        mixture = mixup(images, itself, itself, lam)
    else:
        mixture = CUTS[mixing](images, itself, itself, lam, generator(0))
    torch.testing.assert_close(mixture.images, images)


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("mix", [mixup, mask_mix])
def test_a_weight_of_0_or_1_is_one_image_alone(mix, lam):
    images = rand(6, 3, 16, 16)
    first, second = pair_reversed(6)
    mixture = mix(images, first, second, torch.full((6,), lam))
    assert torch.equal(mixture.images, images[first if lam else second])
    assert (mixture.lam == lam).all()
    if lam:
        assert torch.equal(cutmix(images, first, second, torch.ones(1)).images, images)


def test_a_box_that_is_not_clipped_has_the_paper_s_sides():
    # Side sqrt(1 - 0.75) of 40 pixels. Boxes that are not clipped have a quarter of the area.
    images = torch.cat([torch.ones(400, 1, 40, 40), torch.zeros(400, 1, 40, 40)])
    mixed, _, _, lam = cutmix(images, *pair_halves(800), torch.tensor([0.75]).repeat(400))
    assert lam.min() == 0.75
    assert (lam == 0.75).float().mean() > 0.15
    for image in mixed[lam == 0.75]:
        rows, columns = (image[0] == 0).nonzero(as_tuple=True)
        assert len(rows.unique()) == len(columns.unique()) == 20
        assert rows.max() - rows.min() == columns.max() - columns.min() == 19


def test_boxes_have_uniform_centres():
    # With sides of 2 of 8 pixels the centre is the last pixel of the box.
    images = torch.cat([torch.ones(4000, 1, 8, 8), torch.zeros(4000, 1, 8, 8)])
    lam = torch.full((4000,), 1 - 0.25**2)
    mixed = cutmix(images, *pair_halves(8000), lam, generator(0)).images[:, 0]
    for axis in (1, 2):
        is_cut = (mixed == 0).any(3 - axis)  # m h or m w
        centres = 7 - is_cut.flip(1).int().argmax(1)
        assert stats.chisquare(centres.bincount(minlength=8)).pvalue > 0.001


def draw_masks(lam, count=4000, grid=8, seed=0):
    """Masks with a pixel for each cell."""
    images = torch.cat([torch.ones(count, 1, grid, grid), torch.zeros(count, 1, grid, grid)])
    weights = torch.full((count,), lam)
    return mask_mix(images, *pair_halves(2 * count), weights, generator(seed), grid=grid)


@pytest.mark.parametrize("lam", [0.02, 0.1, 0.5, 0.77, 0.95])
def test_a_mask_has_as_many_cells_as_its_weight_says(lam):
    assert (draw_masks(lam, 200).lam == round(64 * lam) / 64).all()


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
def test_masks_prefer_no_side(lam):
    mean = draw_masks(lam).images.mean((0, 1))
    for other in (mean.flip(0), mean.flip(1), mean.T):
        torch.testing.assert_close(mean, other, rtol=0, atol=0.04)


def test_masks_are_blocks_and_not_single_cells():
    masks = draw_masks(0.5, 500).images
    agree = (masks[..., 1:] == masks[..., :-1]).float().mean()
    assert agree > 0.8  # of independent cells: 0.5
    assert len(masks.flatten(1).unique(dim=0)) > 490


@pytest.mark.parametrize("grid", [1, 2, 5])
def test_a_mask_may_have_another_grid(grid):
    images = torch.cat([torch.ones(50, 1, 20, 20), torch.zeros(50, 1, 20, 20)])
    mixed, _, _, lam = mask_mix(images, *pair_halves(100), rand(50), generator(0), grid=grid)
    cells = mixed.unflatten(2, (grid, -1)).unflatten(4, (grid, -1))
    assert (cells.amax((3, 5)) == cells.amin((3, 5))).all()
    expected = (rand(50) * grid**2).round() / grid**2
    torch.testing.assert_close(lam, expected)


def test_the_coin_of_mixup_or_cutmix_is_fair_and_one_for_the_batch():
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 9, 9)
    coins = []
    for seed in range(200):
        mixed, first, second, lam = Mixer("mixup-or-cutmix", "reversed", 0.8)(
            images, generator(seed)
        )
        sums = lam * first + (1 - lam) * second
        is_mixup = (mixed - sums.view(-1, 1, 1, 1)).abs().amax((1, 2, 3)) < 1e-4
        is_cut = ((mixed == first.view(-1, 1, 1, 1)) | (mixed == second.view(-1, 1, 1, 1))).all()
        assert is_mixup.all() != is_cut
        coins.append(bool(is_mixup.all()))
    assert 75 < sum(coins) < 125


def test_every_permutation_is_equally_likely():
    rng = generator(0)
    drawn = [pair_permuted(4, generator=rng) for _ in range(2400)]
    assert all(first.tolist() == [0, 1, 2, 3] for first, _ in drawn)
    counts = Counter(tuple(second.tolist()) for _, second in drawn)
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


@pytest.mark.parametrize("alpha", [1.0, 0.2, 2.0])
def test_folded_weights_are_the_larger_ones_of_the_beta_law(alpha):
    lam = beta_weights(4000, alpha, folded=True, generator=generator(0))
    plain = beta_weights(4000, alpha, generator=generator(0))
    assert torch.equal(lam, torch.maximum(plain, 1 - plain))
    assert lam.min() >= 0.5
    law = stats.beta(alpha, alpha)
    assert stats.kstest(lam.double(), lambda x: 2 * law.cdf(x) - 1).pvalue > 0.01


def test_the_weight_of_infinite_alpha_is_one_half_and_draws_nothing():
    rng = generator(0)
    before = rng.get_state()
    for folded in (False, True):
        assert beta_weights(3, math.inf, folded, generator=rng).tolist() == [0.5] * 3
    assert torch.equal(rng.get_state(), before)
    mixture = Mixer.mixmask()(rand(4, 3, 16, 16))
    assert mixture.lam.tolist() == [0.5] * 4


def test_the_authors_settings():
    assert Mixer.mixco() == Mixer("mixup", "halves", 1.0, shared_weight=False, folded=False)
    assert Mixer.mixco("cutmix", 2.0) == Mixer("cutmix", "halves", 2.0)
    # i-Mix mixes with a weight for each image, i-CutMix with one box for the batch.
    assert Mixer.imix() == Mixer("mixup", "permuted", 1.0, shared_weight=False, folded=True)
    assert Mixer.imix("cutmix", 2.0) == Mixer("cutmix", "permuted", 2.0, True, True)
    assert Mixer.unmix() == Mixer("mixup-or-cutmix", "reversed", 1.0, shared_weight=True)
    assert Mixer.unmix("mixup", 2.0) == Mixer("mixup", "reversed", 2.0, shared_weight=True)
    assert Mixer.mixmask() == Mixer("mask", "reversed", math.inf, shared_weight=True)


@mixings
@pairings
def test_a_generator_decides_the_mixture_and_the_global_one_is_left_alone(mixing, pairing):
    images, mixer = rand(8, 3, 16, 16), Mixer(mixing, pairing, 0.5)
    before = torch.get_rng_state()
    one, same, other = (mixer(images, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(one, same)
    assert not torch.equal(one.images, other.images)
    torch.manual_seed(5)
    without = mixer(images)
    torch.manual_seed(5)
    assert_same(mixer(images), without)
    assert not torch.equal(mixer(images).images, without.images)


@mixings
def test_the_format_of_the_images_is_kept(mixing):
    images = rand(6, 3, 10, 12)
    mixer = Mixer(mixing, "permuted")
    expected = mixer(images, generator(0))
    last = images.to(memory_format=torch.channels_last)
    mixture = mixer(last, generator(0))
    assert mixture.images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mixture.images, expected.images)


@mixings
def test_no_gradient_flows_through_a_mixture(mixing):
    images = rand(4, 3, 8, 8).requires_grad_()
    mixture = Mixer(mixing)(images)
    assert not mixture.images.requires_grad
    assert not mixture.lam.requires_grad


@mixings
@pairings
@pytest.mark.parametrize("shared", [False, True])
def test_mixing_on_a_gpu_is_that_on_the_cpu_without_waits(mixing, pairing, shared):
    images, mixer = rand(7, 3, 8, 10), Mixer(mixing, pairing, 0.5, shared, folded=True)
    expected = mixer(images, generator(2))
    with pretended_gpu() as gpu:
        on_gpu = images.to("cuda", non_blocking=True)
        mixture = mixer(on_gpu, torch.Generator(device="cuda").manual_seed(2))
        assert gpu.waits == []
        assert {tensor.device.type for tensor in mixture} == {"cuda"}
        assert all(torch.equal(gpu.values(x), y) for x, y in zip(mixture, expected, strict=True))


@mixings
@pairings
@pytest.mark.parametrize("n", [0, 1])
def test_a_batch_without_pairs_is_a_clear_error(mixing, pairing, n):
    with pytest.raises(ValueError, match=f"at least 2 images, got {n}.*drop_last=True"):
        Mixer(mixing, pairing)(rand(n, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixing": "blend"}, "mixing must be one of mixup, cutmix, mask, .*got 'blend'"),
        ({"pairing": "random"}, "pairing must be one of halves, permuted, .*got 'random'"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"alpha": float("nan")}, "alpha must be positive"),
        ({"alpha": "1"}, "alpha must be positive"),
    ],
)
def test_bad_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Mixer(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 8, 8)}, r"\(N, C, H, W\), got .*\(4, 8, 8\)"),
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, "floating point.*uint8"),
        ({"second": torch.arange(3)}, r"first and second .*got \(2,\) and \(3,\)"),
        ({"lam": torch.ones(3)}, r"lam must be .*shape \(2,\), or \(1,\).*got .*\(3,\)"),
        ({"lam": torch.ones(())}, r"lam must be .*got .*\(\)"),
        ({"lam": torch.ones(2, dtype=torch.int64)}, "lam must be a floating point.*got torch.int6"),
    ],
)
def test_what_does_not_fit_together_is_named(change, message):
    given = {"images": rand(4, 3, 8, 8), "first": torch.arange(2), "second": torch.arange(2, 4)}
    given |= {"lam": torch.ones(2)} | change
    for mix in (mixup, cutmix, mask_mix, mixup_or_cutmix):
        with pytest.raises(ValueError, match=message):
            mix(**given)


def test_a_grid_without_cells_is_refused():
    with pytest.raises(ValueError, match="grid must be at least 1, got 0"):
        mask_mix(rand(2, 1, 4, 4), *pair_halves(2), torch.ones(1), grid=0)


# Two views of one image


def test_two_views_are_cut_together_as_cutmix_cuts_two_images():
    views = rand(5, 3, 16, 20), rand(5, 3, 16, 20, seed=1)
    mixture = cut_views(*views, generator=generator(4))
    rng = generator(4)
    masks = torch.tensor(list_boxes(torch.rand(5, generator=rng).tolist(), (16, 20), rng))
    masks = masks[:, None]  # n 1 h w
    assert torch.equal(mixture.images, masks * views[0] + (1 - masks) * views[1])
    torch.testing.assert_close(mixture.lam, masks.mean((1, 2, 3)))
    assert mixture.first.tolist() == mixture.second.tolist() == [0, 1, 2, 3, 4]
    assert len(cut_views(*(view[:1] for view in views)).images) == 1


def test_cut_views_follow_alpha():
    views = torch.ones(2000, 1, 32, 32), torch.zeros(2000, 1, 32, 32)
    wide, narrow = (cut_views(*views, alpha, generator(0)).lam for alpha in (1.0, 50.0))
    assert narrow.std() < wide.std() / 1.5


def test_views_that_cannot_be_cut_together_are_named():
    with pytest.raises(ValueError, match=r"one shape .*\(4, 3, 8, 8\) and .*\(4, 3, 8, 9\)"):
        cut_views(rand(4, 3, 8, 8), rand(4, 3, 8, 9))
    with pytest.raises(ValueError, match=r"one dtype.*float32 .*float16"):
        cut_views(rand(4, 3, 8, 8), rand(4, 3, 8, 8).half())
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        cut_views(rand(3, 8, 8), rand(3, 8, 8))


# In a DataLoader


def draw_epochs(loader_seed):
    loader = DataLoader(
        make_samples(16),
        batch_size=4,
        collate_fn=MixCollate(Mixer("mask", "permuted", 0.5), views=(1,)),
        num_workers=2,
        generator=generator(loader_seed),
    )
    return [list(loader) for _ in range(2)]


def test_a_loader_s_seed_repeats_the_mixtures_of_its_workers_and_epochs():
    one, same, other = (draw_epochs(seed) for seed in (1, 1, 2))
    assert_same(one, same)
    masks = [batch[-1][0].images for epoch in one for batch in epoch]
    assert len({tuple(x.flatten().tolist()) for x in masks}) == 8
    assert not torch.equal(masks[0], other[0][0][-1][0].images)
    for views, _, (mixture,) in one[0]:
        assert isinstance(mixture, Mixture)
        first, second = views[1][mixture.first], views[1][mixture.second]
        assert ((mixture.images == first) | (mixture.images == second)).all()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_mixco_s_collate_function_is_that_of_its_mixer(alpha):
    samples = make_samples()
    torch.manual_seed(0)
    expected = MixCoCollate((0, 1), alpha)(samples)
    torch.manual_seed(0)
    assert_same(MixCollate(Mixer.mixco(alpha=alpha), (0, 1))(samples), expected)


def test_a_mixer_survives_pickling_for_spawned_workers():
    collate = MixCollate(Mixer.unmix(), views=(0, 1))
    copy = pickle.loads(pickle.dumps(collate))  # noqa: S301 - made in the line itself
    assert copy.mixer == collate.mixer
    torch.manual_seed(0)
    expected = collate(make_samples())
    torch.manual_seed(0)
    assert_same(copy(make_samples()), expected)


def test_any_function_of_the_images_can_be_the_mixer():
    def mix_neighbours(images):
        first = torch.arange(0, len(images), 2)
        return mixup(images, first, first + 1, torch.tensor([0.25]))

    views, _, (mixture,) = MixCollate(mix_neighbours)(make_samples())
    torch.testing.assert_close(mixture.images, 0.25 * views[0][::2] + 0.75 * views[0][1::2])
    assert mixture.lam.tolist() == [0.25] * 4


@pytest.mark.parametrize("mixer", ["cutmix", (0,), None])
def test_a_mixer_that_cannot_be_called_is_named_with_what_to_pass(mixer):
    with pytest.raises(TypeError, match=r"such as Mixer.unmix\(\), got"):
        MixCollate(mixer)
