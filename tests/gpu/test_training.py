"""Training in float16 survives infinities, and no training keeps more memory with time."""

import pytest
import torch

from tests.gpu.conftest import DEVICE
from tests.gpu.training import Training

MEGABYTE = 2**20


@pytest.mark.parametrize(
    ("method", "spoiled"),
    [
        ("moco", "projection_head_momentum"),  # the keys
        ("moco", "projection_head"),  # the queries
        ("simclr", "projection_head"),
        ("selfcon", "projection_heads.0"),
    ],
)
def test_with_float16_a_step_with_infinities_is_skipped_and_training_goes_on(method, spoiled):
    training = Training(method, torch.float16)
    for _ in range(10):
        training.step()
    before, scale = [p.detach().clone() for p in training.trained], training.scaler.get_scale()
    head = training.module.get_submodule(spoiled)
    handle = head.register_forward_hook(lambda module, args, output: output * float("inf"))
    training.step()
    handle.remove()
    assert training.scaler.get_scale() < scale
    assert all(map(torch.equal, training.trained, before))
    # Longer than the queue waits before it looks at whether keys were finite.
    losses = torch.stack([training.step() for _ in range(130)])
    assert losses.isfinite().all()
    assert not all(map(torch.equal, training.trained, before))
    if method == "moco":
        keys = training.module.criterion.queue.keys
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(len(keys), device=DEVICE))


def test_with_float16_keys_that_are_never_finite_again_end_the_run():
    training = Training("moco", torch.float16)
    head = training.module.projection_head_momentum
    head.register_forward_hook(lambda module, args, output: output * float("inf"))

    def train():
        for _ in range(300):
            training.step()

    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        train()


@pytest.mark.parametrize("method", ["moco", "simclr", "selfcon"])
def test_memory_does_not_grow_in_a_thousand_steps(method):
    training = Training(method, torch.bfloat16)

    def train(steps):
        for _ in range(steps):
            training.step()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    allocated, reserved = train(50)
    still_allocated, still_reserved = train(1000)
    assert still_allocated <= allocated + MEGABYTE
    assert still_reserved <= reserved + 64 * MEGABYTE  # the allocator may keep a few more blocks
