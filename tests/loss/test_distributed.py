"""Several processes with a part of the batch each, against one process with the whole batch.

The mean over the processes of their losses is the loss of the whole batch. So the gradient of a
parameter, averaged over the processes as DDP does, is that of the whole batch; and the gradient
that a process has at its own projections is `world_size` times its slice of the whole batch's.
Every process has data of its own: with equal data a missing rank offset does not show.
"""

from __future__ import annotations

import os
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from mixco_lightly import (
    IMixLoss,
    KeyQueue,
    MixCoLoss,
    Mixture,
    SelfConLoss,
    UnMixLoss,
    create_backbone,
)
from mixco_lightly.models.moco import MoCo

N, IN_DIM, DIM, STEPS = 5, 6, 4, 10  # N images per process: odd, the last one stays out
M = N // 2
TIME_LIMIT = 60.0  # seconds, for importing torch in each process and for all runs
# 7 keys are fewer than two processes enqueue at once, 33 are no multiple of any batch.
QUEUES = {"moco, short queue": 7, "moco, long queue": 33, "simclr": 0}
QUEUES |= {"imix, queue": 7, "imix": 0, "unmix, queue": 33, "unmix": 0}
RUNS = [(form, gather) for form in QUEUES for gather in (True, False)]
NAMES = {form: ["out0", "out1", "mixed0", *([] if QUEUES[form] else ["mixed1"])] for form in QUEUES}
NAMES |= {"imix, queue": ["mixed0"], "imix": ["mixed0", "out1"]}  # what has a gradient
# Exits, views, whether there are labels, and settings of each form of the SelfCon loss.
SELFCON: dict[str, tuple[int, int, bool, dict[str, Any]]] = {
    "SelfCon-S": (3, 1, True, {}),
    "SelfCon-M": (2, 2, True, {}),
    "SelfCon-SU": (2, 1, False, {}),
    "SelfCon-MU": (2, 2, False, {}),
    "SelfCon-MU, both views": (2, 2, False, {"num_views": 2}),
    "SelfCon-S*": (2, 1, True, {"subnetwork_weight": 0.7}),
    "SelfCon-MU*": (3, 2, False, {"subnetwork_weight": 0.7, "num_views": 2}),
    "SupCon-S": (1, 1, True, {}),
    "SupCon": (1, 2, True, {}),
    "SimCLR": (1, 2, False, {"num_views": 2}),
}
# By number of processes. In SupCon-S the processes have different numbers of anchors with a
# positive, the last of four none; and the first has none in itself.
LABELS = {
    2: [[0, 1, 2, 3, 4], [0, 1, 5, 5, 6]],
    4: [[0, 1, 2, 3, 4], [0, 1, 2, 3, 9], [5, 6, 5, 6, 9], [10, 11, 12, 13, 14]],
}


def whole_batch(step: int, world_size: int) -> tuple[list[Tensor], list[Mixture]]:
    """Inputs of both views and of both mixtures for all processes; pairs stay within a process."""
    generator = torch.Generator().manual_seed(1000 * world_size + step)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    inputs = [draw(world_size * n, IN_DIM) for n in (N, N, M, M)]
    mixtures = []
    for _ in range(2):
        within = [torch.randperm(N, generator=generator)[: 2 * M] for _ in range(world_size)]
        pairs = torch.cat([p + rank * N for rank, p in enumerate(within)]).view(-1, 2)
        lam = torch.rand(world_size * M, dtype=torch.float64, generator=generator)
        mixtures.append(Mixture(torch.empty(len(lam), 0), pairs[:, 0], pairs[:, 1], lam))
    return inputs, mixtures


def part(
    inputs: list[Tensor], mixtures: list[Mixture], rank: int
) -> tuple[list[Tensor], list[Mixture]]:
    """One process's rows, and its mixtures with indices that count from its own first row."""
    own = [x[rank * n : (rank + 1) * n] for x, n in zip(inputs, (N, N, M, M), strict=True)]
    rows = slice(rank * M, (rank + 1) * M)
    return own, [
        Mixture(m.images[rows], m.first[rows] - rank * N, m.second[rows] - rank * N, m.lam[rows])
        for m in mixtures
    ]


def create(form: str, gather: bool = True) -> IMixLoss | MixCoLoss | UnMixLoss:
    """The loss of a form."""
    size = (QUEUES[form], DIM) if QUEUES[form] else 0
    if form.startswith("imix"):
        return IMixLoss(0.5, size, gather)
    if form.startswith("unmix"):
        return UnMixLoss(0.5, 0.7, size, gather)
    return MixCoLoss(0.5, 0.2, 0.7, size, gather)


def draw_arguments(form: str, n: int, generator: torch.Generator | None = None) -> list[Any]:
    """A query and n keys of one process, and only for i-Mix mixtures; the keys come second."""
    query, keys = (torch.randn(n, DIM, generator=generator) for _ in range(2))
    if not form.startswith("imix"):
        return [query.requires_grad_(), keys]
    pairs = Mixture(torch.empty(2, 0), torch.tensor([0, 1]), torch.tensor([2, 3]), torch.rand(2))
    return [query[:2].requires_grad_(), keys, pairs]


def train(form: str, gather: bool, rank: int | None, world_size: int) -> dict[str, Any]:
    """Some steps of SGD with a linear encoder; ``rank`` None is one process with everything."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(IN_DIM, DIM, dtype=torch.float64, generator=generator, requires_grad=True)
    length = QUEUES[form]
    criterion = create(form, gather).double()
    if length:
        start = torch.randn(length, DIM, dtype=torch.float64, generator=generator)
        criterion.queue.keys.copy_(torch.nn.functional.normalize(start, dim=1))

    steps = []
    for step in range(STEPS):
        inputs, mixtures = whole_batch(step, world_size)
        if rank is not None:
            inputs, mixtures = part(inputs, mixtures, rank)
        # The keys keep their graph, to compare their gradient too.
        out0, out1, mixed0, mixed1 = outs = [x @ weight for x in inputs]
        for out in outs:
            out.retain_grad()
        if form.startswith("imix"):
            terms = [criterion(mixed0, out1, mixtures[0])]
        else:
            args = (out0, out1, mixed0, mixtures[0])
            args = args if length else (*args, mixed1, mixtures[1])
            terms = [*criterion.forward_components(*args)]
        weight.grad = None
        terms[0].backward()
        if rank is not None:
            distributed.all_reduce(weight.grad)
            weight.grad /= world_size
        steps.append(
            {
                "terms": torch.stack(terms).detach(),
                "weight": weight.grad.clone(),
                "outs": {
                    name: out.grad
                    for name, out in zip(["out0", "out1", "mixed0", "mixed1"], outs, strict=True)
                },
                "queue": {k: v.clone() for k, v in criterion.state_dict().items()},
            }
        )
        with torch.no_grad():
            weight -= 0.1 * weight.grad
    return {"steps": steps, "weight": weight.detach()}


def contrast_exits(
    form: str, gather: bool, rank: int | None, world_size: int, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """A step with a linear encoder of several exits; ``rank`` None is one process with all."""
    exits, views, has_labels, settings = SELFCON[form]
    generator = torch.Generator().manual_seed(world_size)
    weight = torch.randn(
        IN_DIM, exits * DIM, dtype=torch.float64, generator=generator, requires_grad=True
    )
    x = torch.randn(views, world_size * N, IN_DIM, dtype=torch.float64, generator=generator)
    if labels is None:
        labels = torch.tensor(LABELS[world_size]).flatten()
    if rank is not None:
        own = slice(rank * N, (rank + 1) * N)
        x, labels = x[:, own], labels[own]
    features = (x.flatten(0, 1) @ weight).unflatten(1, (exits, DIM))
    features.retain_grad()
    criterion = SelfConLoss(temperature=0.5, gather_distributed=gather, **settings)
    loss = criterion(features, labels.repeat(views) if has_labels else None)
    loss.backward()
    if rank is not None:
        distributed.all_reduce(weight.grad)
        weight.grad /= world_size
    grad = features.grad.unflatten(0, (views, -1))  # by view and image
    return {"loss": loss.detach(), "weight": weight.grad, "features": grad}


def ragged(form: str, rank: int) -> str:
    """The error of a loss whose last process has one image less than the others."""
    n = N - (rank == distributed.get_world_size() - 1)
    try:
        create(form)(*draw_arguments(form, n))
    except ValueError as error:
        return str(error)
    return "no error"


def ragged_mixtures(rank: int) -> str:
    """The error of mixtures that are candidates, of which the last process has one less."""
    m = M - (rank == distributed.get_world_size() - 1)
    first = torch.arange(m)
    pairs = Mixture(torch.empty(m, 0), first, first + M, torch.rand(m))
    try:
        create("unmix")(torch.randn(N, DIM), torch.randn(N, DIM), torch.randn(m, DIM), pairs)
    except ValueError as error:
        return str(error)
    return "no error"


def nan_on_one_rank(form: str, rank: int) -> dict[str, Any]:
    """A step with a NaN in the last process alone, and a clean step after it."""
    world_size = distributed.get_world_size()
    torch.manual_seed(0)  # equal queues
    criterion = create(form)
    before = {name: x.clone() for name, x in criterion.state_dict().items()}
    arguments = draw_arguments(form, N, torch.Generator().manual_seed(rank))
    bad = [arguments[0], arguments[1].clone(), *arguments[2:]]
    bad[1][0, 0] = torch.nan if rank == world_size - 1 else bad[1][0, 0]
    loss, error = None, ""
    try:
        loss = criterion(*bad).detach()
    except FloatingPointError as raised:
        error = str(raised)
    after = {name: x.clone() for name, x in criterion.state_dict().items()}
    torch.manual_seed(0)
    clean = create(form)
    return {
        "loss": loss,
        "error": error,
        "queue is untouched": all(torch.equal(before[name], after[name]) for name in before),
        "next": criterion(*arguments).detach(),
        "next without it": clean(*arguments).detach(),
    }


def exchanges(rank: int) -> dict[str, Any]:
    """What two steps of each loss exchange where the default group cannot, as NCCL's cannot."""
    notes: dict[str, Any] = {"groups": 0}
    all_gather, new_group = distributed.all_gather, distributed.new_group
    sizes: list[tuple[str, bool]] = []

    def noted_all_gather(tensors: list[Tensor], tensor: Tensor, group: Any = None) -> None:
        if tensor.numel() == 1:
            sizes.append((tensor.device.type, group in (None, distributed.group.WORLD)))
        all_gather(tensors, tensor, group=group)

    def noted_new_group(*args: Any, **kwargs: Any) -> Any:
        notes["groups"] += 1
        return new_group(*args, **kwargs)

    with (
        patch.object(distributed, "all_gather", noted_all_gather),
        patch.object(distributed, "new_group", noted_new_group),
        patch.object(distributed, "get_backend_config", lambda group=None: "cuda:nccl"),
    ):
        for form in QUEUES:
            criterion = create(form)
            for _ in range(2):
                criterion(*draw_arguments(form, N))
            notes[form] = sizes.copy()
            sizes.clear()
        for exits in (1, 2):
            SelfConLoss(gather_distributed=True)(torch.randn(N, exits, DIM), torch.arange(N) // 2)
            SelfConLoss(gather_distributed=True)(torch.randn(N, exits, DIM), torch.arange(N) // 2)
            notes[f"SelfCon, {exits} exits"] = sizes.copy()
            sizes.clear()
        queue = KeyQueue((7, DIM), gather_distributed=True)
        for _ in range(2):
            queue.enqueue(torch.randn(N, DIM))
        notes["queue alone"] = sizes.copy()
    return notes


def queue_warnings(gather: bool) -> list[str]:
    """The warnings of three training steps and one of evaluation, with a queue."""
    criterion = MixCoLoss(memory_bank_size=(7, DIM), gather_distributed=gather)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        criterion.eval()(torch.randn(N, DIM, requires_grad=True), torch.randn(N, DIM))
        assert not caught
        criterion.train()
        for _ in range(3):
            criterion(torch.randn(N, DIM, requires_grad=True), torch.randn(N, DIM))
    return [str(warning.message) for warning in caught]


def ragged_shuffle(rank: int) -> str:
    """The error of MoCo's shuffle of 8 images in the first process and 6 in the others."""
    backbone = create_backbone("test_resnet", image_size=32)
    model = MoCo(backbone, MixCoLoss(memory_bank_size=(16, 8), gather_distributed=True))
    try:
        model.compute_keys(torch.randn(8 if rank == 0 else 6, 3, 32, 32))
    except ValueError as error:
        return str(error)
    return "no error"


def process(rank: int, world_size: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIME_LIMIT / 2),
    )
    result: dict[Any, Any] = {run: train(*run, rank, world_size) for run in RUNS}
    result |= {form: ragged(form, rank) for form in QUEUES}
    result |= {(form, "NaN"): nan_on_one_rank(form, rank) for form in QUEUES}
    result |= {
        (form, gather): contrast_exits(form, gather, rank, world_size)
        for form in SELFCON
        for gather in (True, False)
    }
    distinct = torch.arange(world_size * N)
    result["exchanges"] = exchanges(rank)
    result["warnings"] = {gather: queue_warnings(gather) for gather in (True, False)}
    result["shuffle"] = ragged_shuffle(rank)
    result["ragged mixtures"] = ragged_mixtures(rank)
    result["no positives"] = contrast_exits("SupCon-S", True, rank, world_size, distinct)
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


# One start of the processes serves all tests. They are forked from the server of
# tests.run_recipe, which has imported torch: most of the time would be that import.
@pytest.fixture(scope="module", params=[2, 4], ids=lambda n: f"{n} processes")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[tuple[str, bool], Any]]:
    world_size = request.param
    folder = tmp_path_factory.mktemp("distributed")
    context = multiprocessing.start_processes(
        process,
        (world_size, str(folder)),
        nprocs=world_size,
        join=False,
        start_method="forkserver",
    )
    deadline = time.monotonic() + TIME_LIMIT
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > deadline:
                pytest.fail(f"{world_size} processes were not done after {TIME_LIMIT} s.")
    finally:
        for one in context.processes:
            if one.is_alive():
                one.kill()
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world_size)]


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", QUEUES)
def test_mean_of_the_losses_over_processes_is_the_loss_of_the_whole_batch(
    results: list[dict], form: str
) -> None:
    whole = train(form, False, None, len(results))
    for step, expected in enumerate(whole["steps"]):
        terms = torch.stack([r[form, True]["steps"][step]["terms"] for r in results])
        assert_equal(terms.mean(dim=0), expected["terms"])
        # The data differ: no process has the mean by itself.
        assert (terms - expected["terms"]).abs()[:, 0].min() > 1e-6


@pytest.mark.parametrize("form", QUEUES)
def test_mean_of_the_parameter_gradients_is_that_of_the_whole_batch(
    results: list[dict], form: str
) -> None:
    whole = train(form, False, None, len(results))
    for result in results:
        for step, expected in zip(result[form, True]["steps"], whole["steps"], strict=True):
            assert_equal(step["weight"], expected["weight"])
        assert_equal(result[form, True]["weight"], whole["weight"])


@pytest.mark.parametrize(
    ("form", "name"),
    [(form, name) for form in QUEUES for name in NAMES[form]],
)
def test_gradients_of_projections_are_the_slices_of_the_whole_batch(
    results: list[dict], form: str, name: str
) -> None:
    whole = train(form, False, None, len(results))
    for step, expected in enumerate(whole["steps"]):
        grads = [r[form, True]["steps"][step]["outs"][name] for r in results]
        assert_equal(torch.cat(grads) / len(results), expected["outs"][name])


@pytest.mark.parametrize("form", [form for form, length in QUEUES.items() if length])
def test_queues_are_one_and_hold_all_keys_in_the_order_of_the_ranks(
    results: list[dict], form: str
) -> None:
    whole = train(form, False, None, len(results))
    for step, expected in enumerate(whole["steps"]):
        queues = [r[form, True]["steps"][step]["queue"] for r in results]
        assert set(queues[0]) == {"queue.keys", "queue.position"}
        for queue in queues:
            assert torch.equal(queue["queue.keys"], queues[0]["queue.keys"])
            assert torch.equal(queue["queue.position"], expected["queue"]["queue.position"])
            assert_equal(queue["queue.keys"], expected["queue"]["queue.keys"])


@pytest.mark.parametrize("form", QUEUES)
def test_without_gather_distributed_the_result_is_not_that_of_the_whole_batch(
    results: list[dict], form: str
) -> None:
    expected = train(form, False, None, len(results))["steps"][0]
    first_steps = [r[form, False]["steps"][0] for r in results]
    mean = torch.stack([step["terms"] for step in first_steps]).mean(dim=0)
    if form == "unmix, queue":
        # Neither term has other keys of the batch: at equal queues nothing changes.
        assert_equal(mean, expected["terms"])
    else:
        assert (mean - expected["terms"])[0].abs() > 1e-2
        assert (first_steps[0]["weight"] - expected["weight"]).abs().max() > 1e-3
    if form.startswith("moco"):
        assert_equal(mean[1], expected["terms"][1])  # nor has MoCo's plain term
    if QUEUES[form]:
        assert not torch.equal(
            first_steps[0]["queue"]["queue.keys"], first_steps[1]["queue"]["queue.keys"]
        )


@pytest.mark.parametrize("form", QUEUES)
def test_batches_of_unequal_sizes_are_an_error_in_every_process(
    results: list[dict], form: str
) -> None:
    sizes = [N] * (len(results) - 1) + [N - 1]
    for result in results:
        assert f"need batches of one size, got {sizes}" in result[form]


def test_different_numbers_of_mixtures_that_are_candidates_are_an_error_in_every_process(
    results: list[dict],
) -> None:
    sizes = [M] * (len(results) - 1) + [M - 1]
    for result in results:
        assert f"need batches of one size, got {sizes}" in result["ragged mixtures"]


def test_batch_sizes_are_exchanged_once_a_step_on_the_cpu_so_that_a_gpu_does_not_wait(
    results: list[dict],
) -> None:
    for result in results:
        notes = result["exchanges"]
        assert notes.pop("groups") == 1
        assert len(notes) == len(QUEUES) + 3
        for sizes in notes.values():  # of two steps, over a group for CPU tensors
            assert sizes == [("cpu", False)] * 2


def test_separate_queues_of_several_processes_are_warned_of_once(results: list[dict]) -> None:
    for result in results:
        assert result["warnings"][True] == []
        (warning,) = result["warnings"][False]
        assert f"there are {len(results)} processes: each keeps a queue of its own" in warning
        assert "DistributedDataParallel overwrites them" in warning
        assert "Pass gather_distributed=True" in warning


def test_moco_with_8_and_6_images_is_one_error_in_every_process(results: list[dict]) -> None:
    sizes = [8] + [6] * (len(results) - 1)
    for result in results:
        assert f"need batches of one size, got {sizes} (by rank)" in result["shuffle"]


@pytest.mark.parametrize("form", QUEUES)
def test_a_nan_in_one_process_is_seen_in_every_process_in_the_same_step(
    results: list[dict], form: str
) -> None:
    for rank, result in enumerate(results):
        outcome = result[form, "NaN"]
        if QUEUES[form]:
            assert f"in step 1 of this process (rank {rank})" in outcome["error"]
            assert outcome["queue is untouched"]
        else:
            assert outcome["loss"].isnan()
        # No process waits for another one, and nothing of the bad step is left.
        assert outcome["next"].isfinite()
        assert torch.equal(outcome["next"], outcome["next without it"])


@pytest.mark.parametrize("form", SELFCON)
def test_selfcon_mean_over_processes_is_the_whole_batch_in_loss_and_gradients(
    results: list[dict], form: str
) -> None:
    whole = contrast_exits(form, False, None, len(results))
    parts = [result[form, True] for result in results]
    losses = torch.stack([part["loss"] for part in parts])
    assert_equal(losses.mean(), whole["loss"])
    assert (losses - whole["loss"]).abs().min() > 1e-6
    for part in parts:
        assert_equal(part["weight"], whole["weight"])
    features = torch.cat([part["features"] for part in parts], dim=1)
    assert_equal(features / len(results), whole["features"])


@pytest.mark.parametrize("form", SELFCON)
def test_selfcon_without_gather_distributed_has_each_process_alone(
    results: list[dict], form: str
) -> None:
    whole = contrast_exits(form, False, None, len(results))
    losses = torch.stack([result[form, False]["loss"] for result in results])
    assert (losses.mean() - whole["loss"]).abs() > 1e-2
    if form == "SupCon-S":
        assert losses[0] == 0  # its labels are distinct


def test_selfcon_without_any_positive_has_loss_and_gradients_zero_in_every_process(
    results: list[dict],
) -> None:
    for result in results:
        assert all((value == 0).all() for value in result["no positives"].values())
