import copy
import io
from collections import deque

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mixco_lightly import KeyQueue, MixCoLoss
from mixco_lightly.loss.contrastive import unit_rows
from mixco_lightly.loss.key_queue import TOLERATED_STEPS_IN_FLOAT16
from tests import reference

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 3))
BATCHES = st.lists(st.integers(0, 30), max_size=12)


def oldest_first(queue: KeyQueue) -> list[list[float]]:
    """The ring read from ``position``, the row of the oldest key."""
    return queue.keys.roll(-queue.position.item(), dims=0).tolist()


def numbered_keys(start: int, batch: int, dim: int) -> Tensor:
    """Keys that all differ, exact in float32."""
    return torch.arange(start * dim, (start + batch) * dim, dtype=torch.float32).view(batch, dim)


@settings(max_examples=400, deadline=None)
@given(SIZES, BATCHES)
def test_queue_equals_a_deque_of_maximal_length_n(
    size: tuple[int, int], batches: list[int]
) -> None:
    n, dim = size
    queue = KeyQueue(size)
    model = deque(queue.keys.tolist(), maxlen=n)
    buffers = queue.keys.data_ptr(), queue.position.data_ptr()
    total = 0
    for batch in batches:
        keys = numbered_keys(total, batch, dim)
        queue.enqueue(keys)
        model.extend(keys.tolist())
        total += batch
        assert oldest_first(queue) == list(model)
        assert 0 <= queue.position.item() < n
    # In place: what DDP broadcasts and an optimiser state holds are these very buffers.
    assert (queue.keys.data_ptr(), queue.position.data_ptr()) == buffers


@settings(max_examples=300, deadline=None)
@given(SIZES, BATCHES, BATCHES)
def test_queue_restored_from_its_state_dict_continues_identically(
    size: tuple[int, int], before: list[int], after: list[int]
) -> None:
    queue, restored = KeyQueue(size), KeyQueue(size)
    for i, batch in enumerate(before):
        queue.enqueue(numbered_keys(100 * i, batch, size[1]))
    restored.load_state_dict(copy.deepcopy(queue.state_dict()))
    for i, batch in enumerate(after):
        for one in (queue, restored):
            one.enqueue(numbered_keys(-100 * i, batch, size[1]))
    assert torch.equal(restored.keys, queue.keys)
    assert torch.equal(restored.position, queue.position)


# What happens to a loss with a queue in a run, and how many images the step has.
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["train", "train", "train", "eval", "no grad", "frozen", "NaN", "inf", "save", "half"]
        ),
        st.integers(1, 15),
    ),
    min_size=4,
    max_size=12,
)


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 10), EVENTS, st.integers(0, 2**32))
def test_queue_of_a_loss_equals_a_deque_through_training_evaluation_bad_steps_and_resumes(
    n: int, events: list[tuple[str, int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    criterion = MixCoLoss(temperature=0.5, memory_bank_size=(n, 3))
    model = deque(criterion.queue.keys.tolist(), maxlen=n)
    for event, batch in events:
        if event == "save":  # and go on in a new process, by way of a file
            file = io.BytesIO()
            torch.save(criterion.state_dict(), file)
            criterion = MixCoLoss(temperature=0.5, memory_bank_size=(n, 3))
            file.seek(0)
            criterion.load_state_dict(torch.load(file, weights_only=True))
        elif event == "half":
            criterion.half()
        else:
            queries, keys = (torch.randn(batch, 3, generator=generator) for _ in range(2))
            queries.requires_grad_(event != "frozen")
            criterion.train(event != "eval")
            if event in ("NaN", "inf"):
                keys[batch // 2, 1] = float(event)
                with pytest.raises(FloatingPointError, match="did not enter the queue"):
                    criterion(queries, keys)
            else:
                with torch.set_grad_enabled(event != "no grad"):
                    loss = criterion(queries, keys)
                # That of the keys that were there before this step.
                before = torch.tensor(list(model))
                expected = reference.info_nce(queries, keys, before, 0.5)
                assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
            if event in ("train", "no grad"):  # a leaf requires its gradient in no_grad too
                model.extend(unit_rows(keys).tolist())
        assert oldest_first(criterion.queue) == list(model)


def test_state_dict_holds_the_keys_and_the_position() -> None:
    queue = KeyQueue((5, 2))
    queue.enqueue(torch.ones(3, 2))
    state = queue.state_dict()
    assert set(state) == {"keys", "position"}
    assert state["keys"].shape == (5, 2)
    assert state["keys"].dtype == torch.float32
    assert state["position"].dtype == torch.int64
    assert state["position"].item() == 3


@pytest.mark.parametrize("dim", [1, 2, 128])
def test_queue_starts_as_unit_vectors(dim: int) -> None:
    keys = KeyQueue((50, dim)).keys
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(50), rtol=0, atol=1e-6)


def test_queue_starts_as_random_directions_over_the_whole_sphere() -> None:
    torch.manual_seed(0)
    queue, other = KeyQueue((4096, 8)), KeyQueue((4096, 8))
    assert not torch.equal(queue.keys, other.keys)
    assert queue.position.item() == 0
    # Uniform unit rows in 8 dimensions: mean 0, variance 1/8 per coordinate. The mean of 4096 has
    # a standard deviation of sqrt(1 / (8 * 4096)) = 0.0055, that of the squares 0.0023.
    assert queue.keys.mean(dim=0).abs().max() < 5 * 0.0055
    assert ((queue.keys**2).mean(dim=0) - 1 / 8).abs().max() < 5 * 0.0023


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keys_of_any_dtype_are_kept_in_float32(dtype: torch.dtype) -> None:
    queue = KeyQueue((3, 2))
    keys = torch.tensor([[1 / 3, 0.1], [0.7, -0.2]]).to(dtype)
    queue.enqueue(keys)
    assert queue.keys.dtype == torch.float32
    assert torch.equal(queue.keys[:2], keys.float())


def test_enqueued_keys_are_copies_without_a_gradient() -> None:
    queue = KeyQueue((3, 2))
    keys = torch.ones(2, 2, requires_grad=True)
    queue.enqueue(keys * 1.0)
    assert not queue.keys.requires_grad
    with torch.no_grad():
        keys.zero_()
    assert torch.equal(queue.keys[:2], torch.ones(2, 2))


def test_gather_distributed_on_one_process_changes_nothing() -> None:
    queue = KeyQueue((3, 2), gather_distributed=True)
    queue.enqueue(numbered_keys(0, 2, 2))
    assert torch.equal(queue.keys[:2], numbered_keys(0, 2, 2))
    assert queue.position.item() == 2


def test_printed_form_names_size_and_gather_distributed() -> None:
    assert str(KeyQueue((3, 2), True)) == "KeyQueue(size=(3, 2), gather_distributed=True)"


@pytest.mark.parametrize("size", [[3], [3, 2, 1], [0, 2], [3, 0], [-3, 2], [3.0, 2], ["3", "2"]])
def test_size_other_than_a_pair_of_positive_integers_is_refused(size: list[object]) -> None:
    got = str(size).replace("[", r"\[")
    with pytest.raises(ValueError, match=rf"pair \(n, dim\) of positive integers, got {got}\."):
        KeyQueue(size)


@pytest.mark.parametrize("shape", [(2,), (3, 1), (2, 3), (1, 3, 2)])
def test_keys_of_another_shape_are_refused_and_change_nothing(shape: tuple[int, ...]) -> None:
    queue = KeyQueue((3, 2))
    before = queue.keys.clone()
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"shape \(batch, 2\), got {got}\."):
        queue.enqueue(torch.ones(shape))
    assert torch.equal(queue.keys, before)
    assert queue.position.item() == 0


@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_half_precision_weights_leave_the_keys_as_they_were(convert):
    queue = KeyQueue(size=(5, 3))
    keys = queue.keys.clone()
    getattr(torch.nn.Sequential(queue), convert)()
    assert torch.equal(queue.keys, keys)
    queue.enqueue(torch.eye(3, dtype=torch.float16))
    assert queue.keys.dtype == torch.float32
    assert queue.double().keys.dtype == torch.float64


def test_a_checkpoint_without_a_queue_loads_with_a_warning_and_leaves_the_queue():
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(2, 2), "queue": KeyQueue(size=(4, 2))})
    keys = model["queue"].keys.clone()
    state = {name: x for name, x in model.state_dict().items() if name.startswith("head")}
    with pytest.warns(UserWarning, match=r"no queue \(queue\.keys is missing\)"):
        model.load_state_dict(state, strict=True)
    assert torch.equal(model["queue"].keys, keys)
    assert set(state) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_key_that_is_not_finite_is_an_error_with_its_step_and_the_queue_stays(bad):
    queue = KeyQueue(size=(5, 2))
    queue.enqueue(torch.eye(2))
    before = queue.keys.clone()
    with pytest.raises(FloatingPointError, match=r"in step 2 of this process \(rank 0\)"):
        queue.enqueue(torch.tensor([[1.0, 0.0], [bad, 0.0], [0.0, 1.0]]))
    assert torch.equal(queue.keys, before)
    assert int(queue.position) == 2
    queue.enqueue(-torch.eye(2))
    assert torch.equal(queue.keys, torch.cat([before[:2], -torch.eye(2), before[4:]]))


# What a GPU does, which is not stopped in every step to look.
def test_where_the_look_comes_later_bad_keys_are_left_out_and_the_first_step_is_named(monkeypatch):
    queue = KeyQueue(size=(8, 2))
    old = queue.keys.clone()
    monkeypatch.setattr(queue, "_steps_between_looks", lambda: 4)
    nan = float("nan")
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    queue.enqueue(keys)
    queue.enqueue(torch.tensor([[nan, 0.0], [0.0, -1.0]]))
    queue.enqueue(torch.tensor([[0.0, nan], [nan, nan]]))
    left = torch.stack([*keys, old[2], torch.tensor([0.0, -1.0]), *old[4:]])
    assert torch.equal(queue.keys, left)
    with pytest.raises(FloatingPointError, match="in step 2 of"):
        queue.enqueue(keys)
    assert torch.equal(queue.keys, left)
    for _ in range(4):  # it is said once
        queue.enqueue(keys)


NAN_KEYS = torch.tensor([[float("nan"), 0.0], [0.0, -1.0]])


def test_in_float16_training_a_bad_key_is_left_out_and_the_run_goes_on():
    queue = KeyQueue(size=(4, 2))
    old = queue.keys.clone()
    queue.enqueue(NAN_KEYS, float16=True)
    assert torch.equal(queue.keys, torch.stack([old[0], NAN_KEYS[1], *old[2:]]))
    for _ in range(TOLERATED_STEPS_IN_FLOAT16 - 1):
        queue.enqueue(NAN_KEYS, float16=True)
    queue.enqueue(torch.eye(2), float16=True)
    for _ in range(TOLERATED_STEPS_IN_FLOAT16):  # they are counted from the last clean step
        queue.enqueue(NAN_KEYS, float16=True)
    assert queue.keys.isfinite().all()


@pytest.mark.parametrize("steps_between_looks", [1, 50])
def test_in_float16_training_more_than_20_steps_in_a_row_with_bad_keys_are_an_error(
    steps_between_looks, monkeypatch
):
    assert TOLERATED_STEPS_IN_FLOAT16 == 20
    queue = KeyQueue(size=(4, 2))
    monkeypatch.setattr(queue, "_steps_between_looks", lambda: steps_between_looks)
    queue.enqueue(torch.eye(2), float16=True)
    for _ in range(20 if steps_between_looks == 1 else 48):
        queue.enqueue(NAN_KEYS, float16=True)
    with pytest.raises(FloatingPointError, match=r"in step 22 of .* after 20 such steps in a row"):
        queue.enqueue(NAN_KEYS, float16=True)
    assert queue.keys.isfinite().all()


def test_outside_of_float16_training_tolerated_steps_do_not_excuse_the_next_one():
    queue = KeyQueue(size=(4, 2))
    queue.enqueue(NAN_KEYS, float16=True)
    with pytest.raises(FloatingPointError, match="in step 2 of this process"):
        queue.enqueue(NAN_KEYS)


@pytest.mark.parametrize("fullgraph", [None, False, True])
def test_a_queue_follows_a_device_and_stays_in_the_state_dict(fullgraph):
    torch.compiler.reset()
    queue = KeyQueue(size=(4, 2))
    follow = queue.follow
    if fullgraph is not None:
        follow = torch.compile(queue.follow, backend="eager", fullgraph=fullgraph)
    buffers = queue.keys.data_ptr(), queue.position.data_ptr()
    follow(torch.device("cpu"))
    assert buffers == (queue.keys.data_ptr(), queue.position.data_ptr())
    follow(torch.device("meta"))
    state = queue.state_dict()
    assert list(state) == ["keys", "position"]
    assert all(x.device.type == "meta" for x in state.values())


def test_a_queue_alone_follows_the_keys_of_another_device():
    queue = KeyQueue(size=(4, 2))
    for batch in (1, 3, 7):
        queue.enqueue(torch.ones(batch, 2, device="meta"))
    assert queue.keys.device.type == queue.position.device.type == "meta"


def test_keys_before_is_the_queue_without_its_latest_batch():
    queue = KeyQueue(size=(5, 2))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        queue.keys_before(torch.eye(2))  # nothing came in yet
    generator = torch.Generator().manual_seed(0)
    for batch in (2, 4, 1, 5, 7, 3):  # wraps, and once is larger than the queue
        before = queue.keys.clone()
        keys = torch.randn(batch, 2, generator=generator)
        queue.enqueue(keys)
        assert not torch.equal(queue.keys, before)
        assert torch.equal(queue.keys_before(keys), before)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        queue.keys_before(-keys)
    queue.load_state_dict(queue.state_dict())
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        queue.keys_before(keys)
