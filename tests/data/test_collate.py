import functools
import pickle
import re
import traceback

import pytest
import torch
from lightly.data.multi_view_collate import MultiViewCollate
from lightning_fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from mixco_lightly import MixCoCollate, Mixture, mix_pairs
from mixco_lightly.data.collate import find_mixtures, find_views
from tests.pretended_gpu import pretended_gpu


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
    with pytest.raises(ValueError, match="at least 2 images, got 1") as caught:
        list(loader)
    traceback.clear_frames(caught.tb)  # it holds the worker, which would be waited for later


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
        ({"alpha": "1"}, "alpha must be positive and finite, got '1'"),
        ({"alpha": True}, "alpha must be positive and finite, got True"),
        ({"views": (0, -1)}, "views must not be negative, got -1"),
        ({"views": (0, 1, 0)}, r"name each view once, got \(0, 1, 0\)"),
    ],
)
def test_bad_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        MixCoCollate(**options)


@pytest.mark.parametrize("views", [0.2, 0, True, "01", None, (0, True), (0.0,), ["0"], {0}])
def test_views_that_are_no_indices_are_named_with_what_to_pass(views):
    with pytest.raises(
        TypeError, match=rf"view indices such as \(0,\), got {re.escape(repr(views))}"
    ):
        MixCoCollate(views)


def test_a_number_for_views_is_told_where_the_weights_law_is_set():
    with pytest.raises(TypeError, match="alpha="):
        MixCoCollate(0.2)


def test_view_that_samples_lack_is_named():
    with pytest.raises(ValueError, match="view 2, but each sample has 2 views"):
        MixCoCollate(views=(0, 2))(make_samples())


def test_samples_that_are_dicts_are_refused_with_their_keys():
    samples = [{"image": torch.rand(3, 4, 4), "label": 0}] * 4
    with pytest.raises(ValueError, match=r"got a dict with the keys \['image', 'label'\].*target"):
        MixCoCollate()(samples)


def test_a_collate_function_may_make_a_batch_of_dicts():
    samples = [{"views": views, "label": label} for views, label in make_samples()]
    collate = MixCoCollate(
        collate_fn=lambda batch: default_collate([(s["views"], s["label"]) for s in batch])
    )
    views, _, (mixture,) = collate(samples)
    assert_is_mixture_of(mixture, views[0])


@pytest.mark.parametrize(
    ("collated", "kind"),
    [(None, "a NoneType"), ([], "an empty list"), ({"x": 0}, r"a dict with the keys \['x'\]")],
)
def test_an_inner_collate_function_without_a_batch_is_named(collated, kind):
    with pytest.raises(
        ValueError, match=f"must start with the list of views, got {kind}.*collate_fn"
    ):
        MixCoCollate(collate_fn=lambda samples: collated)(make_samples())


def test_images_of_several_sizes_in_one_view_are_refused_with_both_shapes():
    samples = make_samples(4)
    samples[2][0][1] = torch.rand(3, 5, 4)
    with pytest.raises(ValueError, match=r"View 1 .* \(3, 4, 4\) and \(3, 5, 4\).*resize"):
        MixCoCollate()(samples)


def test_another_fault_of_the_inner_collate_function_is_left_as_it_is():
    def broken(samples):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        MixCoCollate(collate_fn=broken)(make_samples())


def test_views_of_several_sizes_are_mixed_each_in_its_size():
    samples = [([torch.rand(3, 8, 8), torch.rand(3, 4, 4)], 0) for _ in range(6)]
    views, _, mixtures = MixCoCollate(views=(0, 1))(samples)
    for view, mixture in zip(views, mixtures, strict=True):
        assert_is_mixture_of(mixture, view)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_mixtures_of_the_right_view_pass_the_look(dtype, alpha):
    for seed in range(20):
        torch.manual_seed(seed)
        views = [4 * torch.randn(6, 3, 4, 4).to(dtype) for _ in range(2)]
        mixtures = [mix_pairs(view, alpha) for view in views]
        assert find_mixtures([views, mixtures], 2, check_views=True) == mixtures


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixtures_of_another_view_are_named_with_it(dtype):
    views = [torch.rand(6, 3, 4, 4).to(dtype) for _ in range(2)]
    batch = [views, [mix_pairs(views[1])]]
    with pytest.raises(ValueError, match=r"of view 0 are needed.*of view 1: set views.*\(0,\)"):
        find_mixtures(batch, 1, check_views=True)
    with pytest.raises(ValueError, match=r"of view 0 are needed.*of view 1: set views.*\(0, 1\)"):
        find_mixtures([views, [mix_pairs(view) for view in views[::-1]]], 2, check_views=True)
    assert find_mixtures(batch, 1) == batch[-1]


def test_images_that_no_view_gives_pass_the_look_as_cut_ones_do():
    views = [torch.rand(6, 3, 4, 4) for _ in range(2)]
    mixture = mix_pairs(views[0])
    mixture.images[0, :, :2] = views[0][0, :, :2]
    assert find_mixtures([views, [mixture]], 1, check_views=True) == [mixture]


def test_equal_views_pass_the_look():
    view = torch.rand(6, 3, 4, 4)
    mixture = mix_pairs(view)
    assert find_mixtures([[view, view.clone()], [mixture]], 1, check_views=True) == [mixture]


@pytest.mark.parametrize("index", [-1, 6])
def test_a_mixture_of_another_batch_is_named(index):
    views = [torch.rand(6, 3, 4, 4) for _ in range(2)]
    mixture = mix_pairs(views[0])
    mixture.second[1] = index
    with pytest.raises(ValueError, match=f"names image {index} of a batch of 6.*another batch"):
        find_mixtures([views, [mixture]], 1, check_views=True)


@pytest.mark.parametrize("check_views", [False, True])
def test_an_empty_mixture_is_named(check_views):
    views = [torch.rand(6, 3, 4, 4) for _ in range(2)]
    empty = Mixture(*(tensor[:0] for tensor in mix_pairs(views[0])))
    with pytest.raises(ValueError, match="Mixture of view 1 is empty"):
        find_mixtures([views, [mix_pairs(views[0]), empty]], 2, check_views=check_views)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": 0}, r"got a dict with the keys \['image'\]"),
        ([], "got an empty list"),
        ([torch.rand(6, 3, 4, 4), 0], "list of views.*got a Tensor"),
        ([[torch.rand(6, 3, 4, 4)] * 3, 0], "has 3 views of each image, but 2 are needed"),
        ([[torch.rand(6, 3, 4, 4)], 0], "has 1 views of each image, but 2 are needed"),
    ],
)
def test_a_batch_without_the_needed_views_is_named(batch, message):
    with pytest.raises(ValueError, match=message):
        find_views(batch, count=2)


def test_views_of_several_sizes_cannot_share_a_forward():
    views = [torch.rand(6, 3, 8, 8), torch.rand(6, 3, 4, 4)]
    assert find_views([views, 0], count=2) is views
    with pytest.raises(ValueError, match=r"must have one size, got \(3, 8, 8\), \(3, 4, 4\)"):
        find_views([views, 0])


def test_lightning_moves_a_batch_to_a_gpu_without_waiting():
    batch = MixCoCollate(views=(0, 1))(make_samples())
    with pretended_gpu() as gpu:
        moved = move_data_to_device(batch, torch.device("cuda", 0))
        assert gpu.waits == []
        for mixture, original in zip(moved[-1], batch[-1], strict=True):
            assert isinstance(mixture, Mixture)
            assert {tensor.device.type for tensor in mixture} == {"cuda"}
            assert all(
                torch.equal(gpu.values(x), y) for x, y in zip(mixture, original, strict=True)
            )


def test_a_mixture_comes_back_from_a_gpu_with_a_wait_so_that_no_value_is_read_too_early():
    (mixture,) = MixCoCollate()(make_samples())[-1]
    with pretended_gpu() as gpu:
        on_gpu = mixture.to("cuda")
        assert gpu.waits == []
        back = on_gpu.to("cpu")
        assert len(gpu.waits) == 4
        on_gpu = mixture.to(torch.device("cuda"), non_blocking=False)
        assert len(gpu.waits) == 8
    assert all(torch.equal(x, y) for x, y in zip(back, mixture, strict=True))


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
