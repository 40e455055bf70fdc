"""The Un-Mix loss: its values, gradients and identities. What losses share: test_queue_loss.py."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy, normalize

from mixco_lightly import MixCoLoss, MixCoLossComponents, Mixture, UnMixLoss
from tests import reference
from tests.loss.problems import (
    FORMS,
    criterion_of,
    gradients,
    leaves,
    mixture,
    problem,
    rows,
    with_lam,
)
from tests.reference import Problem, draw_problem


def components(p: Problem, **changes: object) -> MixCoLossComponents:
    return criterion_of(p, "unmix", **changes).forward_components(*p.args)


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's loss by dense logits, the query's own key first."""
    queries, keys = normalize(queries, dim=1), normalize(keys, dim=1)
    positive = (queries * keys).sum(dim=1, keepdim=True)  # nc,nc->n1
    logits = torch.cat([positive, queries @ queue.T], dim=1) / temperature
    return cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64))


def reversed_pairs(n: int, lam: float) -> Mixture:
    images = torch.arange(n)
    return Mixture(
        torch.empty(n, 0), images, images.flip(0), torch.full((n,), lam, dtype=torch.float64)
    )


# Values


@pytest.mark.parametrize("seed", range(200))
def test_loss_and_its_terms_equal_loops_with_and_without_a_queue(seed: int) -> None:
    for with_queue in (True, False):
        p = draw_problem(seed, with_queue)
        for actual, expected in zip(components(p), reference.unmix(p), strict=True):
            assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_moco_form_of_hand_set_vectors() -> None:
    e = torch.eye(3, dtype=torch.float64)
    p = problem("moco")._replace(
        out0=2 * e[:2],
        out1=5 * e[:2],
        mixed0=torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64),
        mixture0=mixture([0], [1], [0.25]),
        queue=torch.stack([e[2], -e[0]]),
        temperature=0.2,
        mix_weight=3.0,
    )
    # T = 1/5. Plain: positives 5; queue 0 and -5 for the first query, 0 and 0 for the second.
    first = math.log(math.exp(5) + 1 + math.exp(-5)) - 5
    second = math.log(math.exp(5) + 1 + 1) - 5
    # Mixed: keys 3 and 4, each alone with the queue's 0 and -3.
    in_queue = 1 + math.exp(-3)
    to_first, to_second = (math.log(math.exp(s) + in_queue) - s for s in (3, 4))
    mix = 1 / 4 * to_first + 3 / 4 * to_second
    loss = components(p)
    assert loss.contrast.item() == pytest.approx((first + second) / 2, abs=1e-12)
    assert loss.mix.item() == pytest.approx(mix, abs=1e-12)
    assert loss.total.item() == pytest.approx((first + second) / 2 + 3 * mix, abs=1e-12)


def test_default_settings_are_temperature_02_weight_1_no_queue() -> None:
    p = problem("simclr")._replace(temperature=0.2, mix_weight=1.0)
    assert UnMixLoss()(*p.args).item() == pytest.approx(reference.unmix(p).total, abs=1e-9)


# Gradients


@pytest.mark.parametrize(("form", "temperature"), [("moco", 0.5), ("moco", 0.01), ("simclr", 0.05)])
def test_gradcheck_in_all_projections(form: str, temperature: float) -> None:
    p = leaves(problem(form, temperature)._replace(mix_weight=0.7))
    criterion = criterion_of(p, "unmix").eval()  # the queue must stay as it is
    names = [n for n in ("out0", "out1", "mixed0", "mixed1") if getattr(p, n) is not None]

    def loss(*outs: Tensor) -> Tensor:
        return criterion(*p._replace(**dict(zip(names, outs, strict=True))).args)

    # Relative, because at 0.01 the gradient is up to 100.
    assert gradcheck(loss, [getattr(p, n) for n in names], eps=1e-7, rtol=1e-4)


# Identities


@pytest.mark.parametrize("form", FORMS)
def test_without_mixtures_value_and_gradient_are_those_of_mixco_and_lightlys_nt_xent(
    form: str,
) -> None:
    ours, theirs = leaves(problem(form)), leaves(problem(form))
    size = 0 if ours.queue is None else tuple(ours.queue.shape)
    lightly = NTXentLoss(temperature=ours.temperature, memory_bank_size=size).double()
    if ours.queue is not None:
        lightly.memory_bank.bank.copy_(ours.queue)
    loss = criterion_of(ours, "unmix")(ours.out0, ours.out1)
    expected = lightly(theirs.out0, theirs.out1)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    assert torch.equal(loss, criterion_of(ours)(ours.out0, ours.out1))
    loss.backward()
    expected.backward()
    for grad, expected_grad in zip(gradients(ours)[:2], gradients(theirs)[:2], strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mix_weight", [0, 0.3, 4.0])
@pytest.mark.parametrize("form", FORMS)
def test_total_is_contrast_plus_weighted_mix_and_mix_weight_0_leaves_mixtures_out(
    form: str, mix_weight: float
) -> None:
    p = leaves(problem(form))
    unweighted, weighted = components(p), components(p, mix_weight=mix_weight)
    assert weighted.contrast.item() == unweighted.contrast.item()
    assert weighted.mix.item() == (unweighted.mix.item() if mix_weight else 0.0)
    expected = unweighted.contrast.item() + mix_weight * unweighted.mix.item()
    assert weighted.total.item() == pytest.approx(expected, abs=1e-12)
    weighted.total.backward()
    assert (p.mixed0.grad is None) == (mix_weight == 0)


@pytest.mark.parametrize("lam", [1.0, 0.0])
def test_at_lam_1_and_0_the_term_is_the_plain_term_on_one_image(lam: float) -> None:
    p = problem("moco")
    p = p._replace(mixture0=with_lam(p.mixture0, lam))
    image = p.mixture0.first if lam else p.mixture0.second
    expected = info_nce(p.mixed0, p.out1[image], p.queue, p.temperature)
    torch.testing.assert_close(components(p).mix, expected, rtol=0, atol=1e-12)
    plain = criterion_of(p)(p.mixed0, p.out1[image])
    torch.testing.assert_close(components(p).mix, plain, rtol=0, atol=1e-12)
    # So is a mixture of an image with itself, whatever lam is.
    itself = with_lam(p.mixture0, 0.3)._replace(first=image, second=image)
    mix = components(p._replace(mixture0=itself)).mix
    torch.testing.assert_close(mix, expected, rtol=0, atol=1e-12)


def test_reversed_pairs_with_one_lam_are_the_authors_sum_over_the_reversed_mixtures() -> None:
    p, lam = problem("moco"), 0.3
    p = p._replace(mixed0=rows(5, 4, 20), mixture0=reversed_pairs(5, lam))
    # unmix_c10.py: the same keys for the mixtures and for the mixtures in reversed order.
    in_order = info_nce(p.mixed0, p.out1, p.queue, p.temperature)
    in_reverse = info_nce(p.mixed0.flip(0), p.out1, p.queue, p.temperature)
    expected = lam * in_order + (1 - lam) * in_reverse
    torch.testing.assert_close(components(p).mix, expected, rtol=0, atol=1e-12)


def test_simclr_form_of_reversed_pairs_is_the_readmes_pseudo_code_with_lightlys_nt_xent() -> None:
    ours = leaves(problem("simclr")._replace(mixed1=None, mixture1=None, mixed0=rows(5, 4, 20)))
    theirs, lam = leaves(ours), 0.3
    ours = ours._replace(mixture0=reversed_pairs(5, lam))
    model = NTXentLoss(temperature=ours.temperature).double()
    loss = components(ours).total
    expected = model(theirs.out0, theirs.out1)
    expected = expected + lam * model(theirs.out1, theirs.mixed0)
    expected = expected + (1 - lam) * model(theirs.out1, theirs.mixed0.flip(0))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    loss.backward()
    expected.backward()
    for grad, expected_grad in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)


def test_simclr_form_with_both_views_mixed_is_symmetric_and_the_mean_of_the_two_terms() -> None:
    p = problem("simclr")
    exchanged = p._replace(
        out0=p.out1,
        out1=p.out0,
        mixed0=p.mixed1,
        mixture0=p.mixture1,
        mixed1=p.mixed0,
        mixture1=p.mixture0,
    )
    assert components(exchanged).total.item() == pytest.approx(components(p).total.item())
    mix0 = components(p._replace(mixed1=None, mixture1=None)).mix.item()
    mix1 = components(p._replace(mixed0=None, mixture0=None)).mix.item()
    assert mix0 != pytest.approx(mix1, abs=1e-3)
    assert components(p).mix.item() == pytest.approx((mix0 + mix1) / 2, abs=1e-12)


def test_a_second_copy_of_the_queue_adds_log_2_to_the_negatives_alone() -> None:
    p = problem("moco")
    z, keys = normalize(p.mixed0, dim=1), normalize(p.out1, dim=1)
    lse = (z @ p.queue.T / p.temperature).logsumexp(dim=1) + math.log(2)
    expected = 0.0
    for image, weight in [(p.mixture0.first, p.mixture0.lam), (p.mixture0.second, None)]:
        weight = 1 - p.mixture0.lam if weight is None else weight
        positive = (z * keys[image]).sum(dim=1) / p.temperature
        expected += (weight * (torch.logaddexp(lse, positive) - positive)).mean().item()
    doubled = p._replace(queue=torch.cat([p.queue, p.queue]))
    assert components(doubled).mix.item() == pytest.approx(expected, abs=1e-12)


def test_mixtures_do_not_see_the_other_keys_of_the_batch() -> None:
    p = problem("moco")  # images 0 to 3 are mixed, image 4 is not
    other = p.out1.clone()
    other[4] = -other[4]
    assert components(p._replace(out1=other)).mix.item() == components(p).mix.item()
    # MixCo's mixtures do.
    unlike = criterion_of(p).forward_components(*p._replace(out1=other).args).mix
    assert unlike.item() != criterion_of(p).forward_components(*p.args).mix.item()


def test_the_term_is_above_0_and_reaches_it_where_mixcos_stays_at_the_entropy_of_lam() -> None:
    e = torch.eye(4, dtype=torch.float64)
    pairs = mixture([0, 1], [1, 0], [0.5, 0.5])
    queries = (e[0] + e[1]).expand(2, 4)  # half way between the keys, far from the queue
    p = problem("moco")._replace(
        out0=e[:2], out1=e[:2], mixed0=queries, mixture0=pairs, queue=-queries / math.sqrt(2)
    )
    p = p._replace(temperature=0.02, mix_temperature=0.02)
    assert 0 <= components(p).mix.item() < 1e-12
    mixco = MixCoLoss(0.02, 0.02, memory_bank_size=(2, 4)).double()
    mixco.queue.keys.copy_(p.queue)
    assert mixco.forward_components(*p.args).mix.item() == pytest.approx(math.log(2), abs=1e-12)
    for seed in range(50):
        assert components(draw_problem(seed, with_queue=True)).mix.item() >= 0


@pytest.mark.parametrize("form", FORMS)
def test_at_equal_similarities_the_terms_are_the_log_of_the_number_of_candidates(form: str) -> None:
    p = problem(form)
    e0 = torch.eye(4, dtype=torch.float64)[:1]
    p = p._replace(out0=e0.expand(5, 4), out1=e0.expand(5, 4), mixed0=e0.expand(2, 4))
    p = p._replace(mixed1=None, mixture1=None)
    p = p if p.queue is None else p._replace(queue=e0.expand(7, 4))
    # MoCo: a mixture's one key and the queue. SimCLR: five keys and two mixtures but the anchor.
    candidates = 5 + 2 - 1 if p.queue is None else 1 + 7
    assert components(p).mix.item() == pytest.approx(math.log(candidates), abs=1e-12)
