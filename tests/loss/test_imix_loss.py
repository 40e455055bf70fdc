"""The i-Mix loss: its values, gradients and identities. What losses share: test_queue_loss.py."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy, normalize

from mixco_lightly import IMixLoss
from tests import reference
from tests.loss.problems import FORMS, criterion_of, leaves, mixture, problem, rows, with_lam
from tests.reference import Problem, draw_problem


def value(p: Problem) -> float:
    return criterion_of(p, "imix")(p.mixed0, p.out1, p.mixture0).item()


def candidates_of(p: Problem) -> Tensor:
    """All keys of the batch and of the queue."""
    keys = normalize(p.out1, dim=1)
    return keys if p.queue is None else torch.cat([keys, p.queue])


@pytest.mark.parametrize("seed", range(200))
def test_loss_equals_loops_with_and_without_a_queue(seed: int) -> None:
    for with_queue in (True, False):
        p = draw_problem(seed, with_queue)
        if p.mixed0 is None and p.mixed1 is not None:
            p = p._replace(mixed0=p.mixed1, mixture0=p.mixture1)
        elif p.mixed0 is None:  # one image, mixed with itself
            p = p._replace(mixed0=-p.out0, mixture0=mixture([0], [0], [0.3]))
        assert value(p) == pytest.approx(reference.imix(p), rel=1e-9, abs=1e-9)


def test_loss_of_hand_set_vectors() -> None:
    e = torch.eye(3, dtype=torch.float64)
    p = problem("moco")._replace(
        mixed0=torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64),
        out1=5 * e[:2],
        mixture0=mixture([0], [1], [0.25]),
        queue=torch.stack([e[2], -e[0]]),
        temperature=0.2,
    )
    # T = 1/5: keys 0.6 / T = 3 and 0.8 / T = 4; queue 0 and -3. Targets 1/4 and 3/4.
    target = 1 / 4 * 3 + 3 / 4 * 4
    with_queue = math.log(math.exp(3) + math.exp(4) + 1 + math.exp(-3)) - target
    assert value(p) == pytest.approx(with_queue, abs=1e-12)
    without = math.log(math.exp(3) + math.exp(4)) - target
    assert value(p._replace(queue=None)) == pytest.approx(without, abs=1e-12)


def test_default_settings_are_temperature_02_and_no_queue() -> None:
    p = problem("simclr")._replace(temperature=0.2)
    loss = IMixLoss()(p.mixed0, p.out1, p.mixture0)
    assert loss.item() == pytest.approx(reference.imix(p), abs=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_npair_gradcheck_in_mixtures_and_keys(temperature: float) -> None:
    p = leaves(problem("simclr", temperature))
    criterion = criterion_of(p, "imix")
    inputs = (p.mixed0, p.out1)
    assert gradcheck(lambda m, k: criterion(m, k, p.mixture0), inputs, eps=1e-7, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_moco_form_gradcheck_in_mixtures(temperature: float) -> None:
    p = leaves(problem("moco", temperature))
    criterion = criterion_of(p, "imix").eval()  # the queue must stay as it is
    assert gradcheck(lambda m: criterion(m, p.out1, p.mixture0), (p.mixed0,), eps=1e-7, rtol=1e-4)


def test_keys_have_a_gradient_without_a_queue_and_none_with_one() -> None:
    for form in FORMS:
        p = leaves(problem(form))
        criterion_of(p, "imix")(p.mixed0, p.out1, p.mixture0).backward()
        assert (p.out1.grad is None) == (form == "moco")
        assert (p.mixed0.grad.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("lam", [1.0, 0.0])
@pytest.mark.parametrize("form", FORMS)
def test_at_lam_1_and_0_it_is_info_nce_of_one_image_among_all_keys(form: str, lam: float) -> None:
    p = problem(form)
    p = p._replace(mixture0=with_lam(p.mixture0, lam))
    image = p.mixture0.first if lam else p.mixture0.second
    logits = normalize(p.mixed0, dim=1) @ candidates_of(p).T / p.temperature
    assert value(p) == pytest.approx(cross_entropy(logits, image).item(), abs=1e-12)
    # So is a mixture of an image with itself, whatever lam is.
    itself = with_lam(p.mixture0, 0.3)._replace(first=image, second=image)
    assert value(p._replace(mixture0=itself)) == pytest.approx(value(p), abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_loss_is_the_term_of_mixco_at_the_same_temperature(form: str) -> None:
    p = problem(form, temperature=0.3, mix_temperature=0.3)._replace(mixed1=None, mixture1=None)
    mix = criterion_of(p).forward_components(*p.args).mix
    assert value(p) == mix.item()


@pytest.mark.parametrize("form", FORMS)
def test_loss_is_at_least_the_entropy_of_lam_and_the_log_of_the_mixed_probability(
    form: str,
) -> None:
    p = problem(form)
    lam = torch.tensor([0.3, 0.9], dtype=torch.float64)
    entropy = -(lam * lam.log() + (1 - lam) * (1 - lam).log()).mean().item()
    assert value(p) >= entropy
    # Lower bound by Jensen: the log of the mixture, not the mixture of the logs.
    logits = normalize(p.mixed0, dim=1) @ candidates_of(p).T / p.temperature
    probability = logits.softmax(dim=1)
    first, second = (probability[[0, 1], i] for i in (p.mixture0.first, p.mixture0.second))
    for weight, is_equal in [(0.3, False), (1.0, True), (0.0, True)]:
        bound = -(weight * first + (1 - weight) * second).log().mean().item()
        loss = value(p._replace(mixture0=with_lam(p.mixture0, weight)))
        assert loss == pytest.approx(bound, abs=1e-12) if is_equal else loss > bound + 1e-3


def test_at_the_optimal_similarities_the_loss_is_the_entropy_of_lam() -> None:
    # Two keys at right angles, and s_a - s_b = log(lam / (1 - lam)) in units of the temperature.
    lam, temperature = 0.7, 0.1
    gap = temperature * math.log(lam / (1 - lam))
    a = math.asin(gap / math.sqrt(2))  # cos(t) - sin(t) = sqrt(2) sin(45 deg - t)
    t = math.pi / 4 - a
    p = problem("simclr")._replace(
        mixed0=torch.tensor([[math.cos(t), math.sin(t)]], dtype=torch.float64),
        out1=torch.eye(2, dtype=torch.float64),
        mixture0=mixture([0], [1], [lam]),
        temperature=temperature,
    )
    entropy = -(lam * math.log(lam) + (1 - lam) * math.log(1 - lam))
    assert value(p) == pytest.approx(entropy, abs=1e-12)


def test_at_equal_similarities_the_loss_is_the_log_of_the_number_of_candidates() -> None:
    e0 = torch.eye(4, dtype=torch.float64)[:1]
    p = problem("moco")._replace(out1=e0.expand(5, 4), queue=e0.expand(7, 4), mixed0=rows(2, 4, 1))
    assert value(p) == pytest.approx(math.log(5 + 7), abs=1e-12)
    assert value(p._replace(queue=None)) == pytest.approx(math.log(5), abs=1e-12)
