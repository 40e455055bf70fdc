"""A stand-in of the Hub for the tests that need one."""

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.backbones.stand_in_hub import TOKEN, StandInHub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running stand-in that huggingface_hub takes for the Hub, and an empty cache."""
    stand_in = StandInHub()
    template = stand_in.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # Asked for once a day, and written into the home directory.
    registry = str(tmp_path / "agents.json")
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", registry, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield stand_in
    stand_in.close()
    close_session()
