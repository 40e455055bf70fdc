import pytest
import torch

from mixco_lightly.evaluation.protocol import Setup


@pytest.fixture
def setup():
    """What a protocol of features is given beside a part."""
    return Setup(None, None, None, 2, 0, 3, torch.device("cpu"), "32-true", "")
