"""Tests that need a GPU. ``make test-gpu`` runs them; the default run does not collect them."""

import pytest
import torch

DEVICE = torch.device("cuda")


def pytest_configure(config):
    """Fails without a GPU: skipped tests would look like passed ones."""
    if not torch.cuda.is_available():
        raise pytest.UsageError("tests/gpu needs a GPU, and torch.cuda.is_available() is False.")


@pytest.fixture(autouse=True)
def full_precision():
    """Switches TF32 off, so that figures can be compared with the CPU's, and restores it."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before
