import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from mixco_lightly import Mixture, mix_pairs
from tests.pretended_gpu import pretended_gpu


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draw_lam(num_pairs, alpha=1.0, seed=0):
    return mix_pairs(torch.zeros(2 * num_pairs, 1, 1, 1), alpha, generator(seed)).lam


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 9),
    c=st.integers(1, 4),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    alpha=st.sampled_from([0.2, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_every_mixture_is_the_weighted_sum_of_its_pair(n, c, h, w, alpha, seed):
    images = torch.randn(n, c, h, w, dtype=torch.float64, generator=generator(seed))
    original = images.clone()
    mixed, first, second, lam = mix_pairs(images, alpha, generator(seed))

    assert mixed.shape == (n // 2, c, h, w)
    assert first.tolist() == list(range(n // 2))
    assert second.tolist() == list(range(n // 2, 2 * (n // 2)))
    assert first.dtype == second.dtype == torch.int64
    assert lam.shape == (n // 2,)
    assert ((lam >= 0) & (lam <= 1)).all()
    for m in range(n // 2):
        expected = lam[m] * original[first[m]] + (1 - lam[m]) * original[second[m]]
        torch.testing.assert_close(mixed[m], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(images, original)


def test_black_and_white_images_mix_to_the_weights_themselves():
    # White first, black second: lam. Black first, white second: 1 - lam. Equal pairs stay.
    images = (
        torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).view(8, 1, 1, 1).expand(8, 3, 4, 4)
    )
    mixed, _, _, lam = mix_pairs(images, generator=generator(0))
    expected = [lam[0], 1 - lam[1], 0.0, 1.0]
    for m, value in enumerate(expected):
        torch.testing.assert_close(mixed[m], torch.full((3, 4, 4), float(value)))


def test_odd_batch_leaves_the_last_image_out():
    images = torch.rand(7, 1, 2, 2)
    images[-1] = torch.nan
    mixture = mix_pairs(images)
    assert mixture.images.shape[0] == 3
    assert mixture.images.isfinite().all()
    assert 6 not in torch.cat([mixture.first, mixture.second])


def test_batch_of_two_gives_one_mixture():
    mixture = mix_pairs(torch.rand(2, 3, 4, 4))
    assert isinstance(mixture, Mixture)
    assert (mixture.first.tolist(), mixture.second.tolist()) == ([0], [1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 3, 4, 4), "at least 2 images, got 1"),
        (torch.rand(0, 3, 4, 4), "at least 2 images, got 0"),
        (torch.rand(3, 4, 4), r"shape \(3, 4, 4\)"),
        (torch.rand(2, 2, 3, 4, 4), r"shape \(2, 2, 3, 4, 4\)"),
        (torch.zeros(4, 3, 4, 4, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(4, 3, 4, 4, dtype=torch.int64), "torch.int64"),
    ],
)
def test_images_that_cannot_be_mixed_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        mix_pairs(images)


@pytest.mark.parametrize("alpha", [0.0, -0.5, float("inf"), float("nan")])
def test_bad_alpha_is_refused_and_named(alpha):
    with pytest.raises(ValueError, match=f"alpha must be positive and finite, got {alpha}"):
        mix_pairs(torch.rand(4, 3, 4, 4), alpha=alpha)


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_seed_decides_the_mix(alpha):
    images = torch.rand(8, 3, 4, 4)
    one, same, other = (mix_pairs(images, alpha, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.lam, other.lam)
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_given_generator_leaves_the_global_one_untouched(alpha):
    before = torch.get_rng_state()
    mix_pairs(torch.zeros(8, 3, 4, 4), alpha, generator(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_without_a_generator_the_global_one_is_drawn_from(alpha):
    torch.manual_seed(5)
    one, two = (mix_pairs(torch.zeros(8, 3, 4, 4), alpha).lam for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(mix_pairs(torch.zeros(8, 3, 4, 4), alpha).lam, one)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("alpha", [1.0, 0.2, 2.0])
def test_weights_follow_the_beta_law(alpha):
    lam = draw_lam(5000, alpha).double().numpy()
    assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    # The test above has to be able to tell the laws apart.
    for other in {1.0, 0.2, 2.0} - {alpha}:
        assert stats.kstest(lam, stats.beta(other, other).cdf).pvalue < 1e-6


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_each_pair_has_a_weight_of_its_own(alpha):
    # Near 1 float32 weights of Beta(0.2, 0.2) may coincide; further in they are distinct.
    lam = draw_lam(50, alpha)
    inner = lam[(lam > 0.001) & (lam < 0.999)]
    assert len(inner) > 20
    assert len(inner.unique()) == len(inner)


@pytest.mark.parametrize("alpha", [1e-3, 1e3])
def test_extreme_alpha_gives_finite_weights(alpha):
    lam = draw_lam(2000, alpha)
    assert ((lam >= 0) & (lam <= 1)).all()
    assert lam.mean().item() == pytest.approx(0.5, abs=0.05)


def test_no_gradient_flows_through_the_mix():
    images = torch.rand(4, 3, 4, 4, requires_grad=True)
    mixture = mix_pairs(images)
    assert not mixture.images.requires_grad
    assert not mixture.lam.requires_grad


@pytest.mark.parametrize(
    ("dtype", "lam_dtype", "tolerance"),
    [
        (torch.float16, torch.float32, 2e-3),
        (torch.bfloat16, torch.float32, 2e-2),
        (torch.float32, torch.float32, 1e-6),
        (torch.float64, torch.float64, 1e-12),
    ],
)
def test_images_keep_their_dtype(dtype, lam_dtype, tolerance):
    images = torch.rand(6, 3, 4, 4, generator=generator(0)).to(dtype)
    mixed, first, second, lam = mix_pairs(images, 0.5, generator(1))
    assert mixed.dtype == dtype
    assert lam.dtype == lam_dtype
    weight = lam.double().view(-1, 1, 1, 1)
    expected = weight * images[first].double() + (1 - weight) * images[second].double()
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=tolerance)


def test_a_mixture_moves_as_a_whole():
    mixture = mix_pairs(torch.rand(4, 3, 2, 2)).to("meta")
    assert isinstance(mixture, Mixture)
    assert {tensor.device.type for tensor in mixture} == {"meta"}


@pytest.mark.parametrize("images", [0.5, [torch.rand(3, 4, 4)]], ids=["number", "list"])
def test_images_that_are_no_tensor_are_named(images):
    with pytest.raises(TypeError, match=f"images must be a tensor .*got a {type(images).__name__}"):
        mix_pairs(images)


@pytest.mark.parametrize("alpha", [generator(0), "1", None, True])
def test_an_alpha_that_is_no_number_is_named(alpha):
    with pytest.raises(ValueError, match="alpha must be positive and finite, got"):
        mix_pairs(torch.rand(4, 3, 4, 4), alpha)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("has_generator", [False, True])
def test_mixing_on_a_gpu_is_that_on_the_cpu_bit_by_bit_without_waits(alpha, has_generator):
    images = torch.rand(7, 3, 8, 8)
    torch.manual_seed(2)
    expected = mix_pairs(images, alpha, generator(2) if has_generator else None)
    with pretended_gpu() as gpu:
        on_gpu = images.to("cuda", non_blocking=True)
        torch.manual_seed(2)
        rng = torch.Generator(device="cuda").manual_seed(2) if has_generator else None
        mixture = mix_pairs(on_gpu, alpha, rng)
        assert gpu.waits == []
        assert {tensor.device.type for tensor in mixture} == {"cuda"}
        assert all(torch.equal(gpu.values(x), y) for x, y in zip(mixture, expected, strict=True))
