import functools
import pickle

import pytest
import torch
from lightly.data.multi_view_collate import MultiViewCollate
from lightning_fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from mixco_lightly import MixCoCollate, Mixture


def make_samples(num_samples=8, num_views=2, filenames=False):
    """Samples of (views, target) or (views, target, filename), all images different."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(num_samples):
        views = [torch.rand(3, 4, 4, generator=generator) for _ in range(num_views)]
        samples.append((views, index, f"{index}.png") if filenames else (views, index))
    return samples


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(actual, (list, tuple)) and not isinstance(actual[0], str):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)
    elif isinstance(actual, torch.Tensor):
        assert torch.equal(actual, expected)
    else:
        assert actual == expected


def assert_is_mixture_of(mixture, images):
    assert isinstance(mixture, Mixture)
    assert mixture.images.shape[0] == len(images) // 2
    for m, lam in enumerate(mixture.lam):
        expected = lam * images[mixture.first[m]] + (1 - lam) * images[mixture.second[m]]
        torch.testing.assert_close(mixture.images[m], expected)


@pytest.mark.parametrize(
    ("inner", "filenames"),
    [(default_collate, False), (default_collate, True), (MultiViewCollate(), True)],
    ids=["default-2-tuples", "default-3-tuples", "lightly-3-tuples"],
)
@pytest.mark.parametrize("views", [(0,), (1,), (0, 1), [1, 0]])
def test_inner_batch_is_unchanged_and_the_mixtures_are_last(inner, filenames, views):
    samples = make_samples(filenames=filenames)
    batch = MixCoCollate(views=views, collate_fn=inner)(samples)

    *unchanged, mixtures = batch
    expected = inner(samples)
    assert len(unchanged) == len(expected) == 2 + filenames
    for actual, wanted in zip(unchanged, expected, strict=True):
        assert_same(actual, wanted)
    assert isinstance(mixtures, list)
    assert len(mixtures) == len(views)
    for view, mixture in zip(views, mixtures, strict=True):
        assert_is_mixture_of(mixture, batch[0][view])


def test_defaults_mix_the_query_view_with_uniform_weights():
    torch.manual_seed(0)
    samples = [([torch.zeros(1, 1, 1), torch.ones(1, 1, 1)], 0)] * 4000
    *_, mixtures = MixCoCollate()(samples)
    (mixture,) = mixtures
    assert not mixture.images.any()
    assert mixture.lam.var().item() == pytest.approx(1 / 12, rel=0.05)


def test_alpha_reaches_the_weights():
    torch.manual_seed(0)
    samples = [([torch.zeros(1, 1, 1)], 0)] * 4000
    *_, (mixture,) = MixCoCollate(alpha=100.0)(samples)
    # The variance of Beta(a, a) is 1 / (8a + 4).
    assert mixture.lam.var().item() == pytest.approx(1 / 804, rel=0.1)


def test_each_view_draws_weights_of_its_own():
    *_, (mixture0, mixture1) = MixCoCollate(views=(0, 1))(make_samples())
    assert not torch.equal(mixture0.lam, mixture1.lam)


def draw_epochs(num_workers, loader_seed=None, epochs=2, num_samples=16):
    """The weights of each batch (row) of each epoch."""
    generator = None if loader_seed is None else torch.Generator().manual_seed(loader_seed)
    loader = DataLoader(
        make_samples(num_samples),
        batch_size=4,
        collate_fn=MixCoCollate(),
        num_workers=num_workers,
        generator=generator,
    )
    return [[batch[-1][0].lam for batch in loader] for _ in range(epochs)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_batch_worker_and_epoch_draws_different_weights(num_workers):
    # Of the four batches in an epoch each of two workers makes two.
    lam = torch.cat([torch.cat(epoch) for epoch in draw_epochs(num_workers, loader_seed=0)])
    assert len(lam) == 16
    assert len(lam.unique()) == 16


def test_loader_seed_repeats_the_weights_of_worker_processes():
    one, same, other = (draw_epochs(num_workers=2, loader_seed=seed) for seed in (1, 1, 2))
    assert_same(one, same)
    assert not torch.equal(one[0][0], other[0][0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_seed_repeats_the_weights(num_workers):
    torch.manual_seed(7)
    one = draw_epochs(num_workers)
    torch.manual_seed(7)
    assert_same(draw_epochs(num_workers), one)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ragged_last_batch_of_odd_size_is_mixed(num_workers):
    loader = DataLoader(
        make_samples(7), batch_size=4, collate_fn=MixCoCollate(), num_workers=num_workers
    )
    batches = list(loader)
    assert [len(batch[1]) for batch in batches] == [4, 3]
    for views, _, (mixture,) in batches:
        assert_is_mixture_of(mixture, views[0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batch_of_one_is_a_clear_error(num_workers):
    loader = DataLoader(
        make_samples(5), batch_size=4, collate_fn=MixCoCollate(), num_workers=num_workers
    )
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        list(loader)


def assert_keeps_batch(moved, batch):
    assert isinstance(moved[-1][0], Mixture)
    for actual, expected in zip(moved[-1][0], batch[-1][0], strict=True):
        assert torch.equal(actual, expected)


def test_pinning_memory_keeps_the_mixture_type(monkeypatch):
    # Pinning a tensor needs CUDA; what happens to the containers around it does not.
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: pinned.append(0) or self)
    batch = MixCoCollate()(make_samples())
    assert_keeps_batch(pin_memory(batch), batch)
    assert len(pinned) == 2 + 1 + 4  # views, targets, mixture


def test_moving_to_a_device_keeps_the_mixture_type():
    batch = MixCoCollate()(make_samples())
    assert_keeps_batch(move_data_to_device(batch, torch.device("cpu")), batch)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved[-1][0], Mixture)
    assert {tensor.device.type for tensor in moved[-1][0]} == {"meta"}


def test_collate_survives_pickling_for_spawned_workers():
    collate = MixCoCollate(views=(0, 1), alpha=0.4, collate_fn=MultiViewCollate())
    copy = pickle.loads(pickle.dumps(collate))  # noqa: S301 - made in the line itself
    samples = make_samples(filenames=True)
    torch.manual_seed(0)
    expected = collate(samples)
    torch.manual_seed(0)
    assert_same(copy(samples), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ()}, "views must name at least one view"),
        ({"alpha": 0.0}, "alpha must be positive and finite, got 0.0"),
        ({"alpha": float("nan")}, "alpha must be positive and finite, got nan"),
    ],
)
def test_bad_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        MixCoCollate(**options)


@pytest.mark.parametrize("view", [2, -1])
def test_view_that_samples_lack_is_named(view):
    with pytest.raises(ValueError, match=f"view {view}, but each sample has 2 views"):
        MixCoCollate(views=(0, view))(make_samples())


def test_samples_without_views_are_refused():
    samples = [(torch.rand(3, 4, 4), 0)] * 4
    with pytest.raises(ValueError, match=r"list of views.*is a Tensor"):
        MixCoCollate()(samples)


def test_inner_collate_gets_the_batch_as_it_is():
    seen = []

    def spy(batch, note):
        seen.append((batch, note))
        return default_collate(batch)

    samples = make_samples()
    MixCoCollate(collate_fn=functools.partial(spy, note="x"))(samples)
    assert len(seen) == 1
    assert seen[0][0] is samples
