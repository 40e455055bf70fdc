"""The Hub, against a stand-in of its HTTP interface: nothing leaves this machine."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import save_file

from mixco_lightly import create_backbone, export_backbone, load_backbone, push_to_hub
from mixco_lightly.backbones.model_card import create_model_card
from tests.backbones.stand_in_hub import TOKEN

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
REPO = "alice/tiny-mixco"
FILES = {"README.md", "backbone.json", "config.json", "model.safetensors"}
TRAINING = {
    "method": "moco",
    "dataset": "cifar10",
    "data_dir": "/home/alice/secret-images",
    "output_dir": "/home/alice/runs/moco",
    "epochs": 30,
    "learning_rate": None,
    "precision": "bf16-mixed",
    "seed": 3,
    "knn_k": 20,
}
METRICS = {
    "linear_top1": 71.2345,
    "knn_top1": 68.0,
    "random_init_knn_top1": 31.5,
    "seconds": 12.0,
    "versions": {"torch": "2.14.1"},
}


def random_backbone(seed=0, name="test_vit", **options):
    torch.manual_seed(seed)
    return create_backbone(name, 32, **options).eval()


def exported(tmp_path, backbone, **facts):
    normalised = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    return export_backbone(backbone, tmp_path / "export", **normalised, **facts)


def features_of(model):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images)


def one_line(caught):
    assert "\n" not in str(caught.value)
    return True


@pytest.mark.parametrize("stem", ["timm", "small"])
def test_features_of_a_pushed_and_loaded_backbone_are_equal_bit_by_bit(stem, hub, tmp_path):
    backbone = random_backbone(name="test_resnet", stem=stem)
    directory = exported(tmp_path, backbone, training=TRAINING, metrics=METRICS)
    torch.save({"weight": torch.ones(1)}, directory / "pytorch_model.bin")
    url = push_to_hub(directory, REPO)
    assert url == f"{hub.endpoint}/{REPO}/commit/{hub.repos[REPO]['branches']['main']}"
    assert hub.files(REPO).keys() == FILES  # and not the pickle
    loaded = load_backbone(f"hf-hub:{REPO}")
    assert torch.equal(features_of(loaded), features_of(backbone))
    image = Image.new("RGB", (50, 40), "red")
    assert torch.equal(loaded.transform(image), load_backbone(directory).transform(image))
    fetched = {path.rsplit("/", 1)[-1] for _, path in hub.requests if "/resolve/" in path}
    assert fetched == {"backbone.json", "model.safetensors"}


def test_timm_loads_a_pushed_backbone_from_the_hub_with_equal_features(hub, tmp_path):
    backbone = random_backbone()
    push_to_hub(exported(tmp_path, backbone), REPO)
    model = timm.create_model(f"hf-hub:{REPO}", pretrained=True, num_classes=0).eval()
    assert torch.equal(features_of(model), features_of(backbone))


def test_timm_refuses_a_pushed_small_stem_and_says_what_loads_it(hub, tmp_path):
    push_to_hub(exported(tmp_path, random_backbone(name="test_resnet")), REPO)
    with pytest.raises(RuntimeError, match=r"not timm's test_resnet.*load_backbone"):
        timm.create_model(f"hf-hub:{REPO}", pretrained=True, num_classes=0)


def test_export_of_an_earlier_version_is_pushed_in_todays_format(hub, tmp_path):
    backbone = random_backbone()
    save_file(backbone.model.state_dict(), tmp_path / "backbone.safetensors")
    config = {
        "format": "mixco-lightly backbone 2",
        "name": "test_vit",
        "image_size": 32,
        "in_chans": 3,
        "stem": "small",
        "timm_kwargs": {},
        "chosen_kwargs": {"img_size": 32, "patch_size": 4},
        "removed_strides": [],
    }
    weights = hashlib.sha256((tmp_path / "backbone.safetensors").read_bytes()).hexdigest()
    sealed = json.dumps(config, sort_keys=True) + weights
    config["sha256"] = hashlib.sha256(sealed.encode()).hexdigest()
    (tmp_path / "backbone.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"earlier version.*export it again"):
        create_model_card(tmp_path)
    push_to_hub(tmp_path, REPO)
    assert hub.files(REPO).keys() == FILES
    assert torch.equal(features_of(load_backbone(f"hf-hub:{REPO}")), features_of(backbone))


def test_a_revision_is_a_branch_or_a_commit(hub, tmp_path):
    first, second, third = (random_backbone(seed) for seed in range(3))
    url = push_to_hub(exported(tmp_path, first), REPO)
    push_to_hub(exported(tmp_path, second), REPO)
    push_to_hub(exported(tmp_path, third), REPO, revision="trial", private=True)
    names = {"": second, "@main": second, "@trial": third, f"@{url.rsplit('/', 1)[-1]}": first}
    for revision, backbone in names.items():
        loaded = load_backbone(f"hf-hub:{REPO}{revision}")
        assert torch.equal(features_of(loaded), features_of(backbone))
    assert not hub.repos[REPO]["is_private"]  # only a new repository becomes private
    push_to_hub(tmp_path / "export", "alice/other", private=True)
    assert hub.repos["alice/other"]["is_private"]


def test_a_push_between_two_downloads_does_not_mix_two_exports(hub, tmp_path):
    first, second = random_backbone(0), random_backbone(1)
    push_to_hub(exported(tmp_path, first), REPO)
    push_to_hub(exported(tmp_path, second), "alice/second")
    later = hub.files("alice/second")
    path = f"/{REPO}/resolve/main/backbone.json"
    hub.then["GET", path] = lambda: hub.commit(REPO, later)
    assert torch.equal(features_of(load_backbone(f"hf-hub:{REPO}")), features_of(first))
    assert torch.equal(features_of(load_backbone(f"hf-hub:{REPO}")), features_of(second))


@pytest.mark.parametrize("cause", ["offline", "no server"])
def test_without_the_hub_the_cache_answers_and_what_it_lacks_is_one_line(
    cause, hub, tmp_path, monkeypatch
):
    backbone = random_backbone()
    directory = exported(tmp_path, backbone)
    push_to_hub(directory, REPO)
    load_backbone(f"hf-hub:{REPO}")
    if cause == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        reason = "HF_HUB_OFFLINE is set"
    else:
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between five trials
        # A port of this machine that nobody listens to.
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        reason = re.escape("The Hub (http://127.0.0.1:9) cannot be reached")
    assert torch.equal(features_of(load_backbone(f"hf-hub:{REPO}")), features_of(backbone))
    with pytest.raises(ConnectionError, match=f"{reason}, and alice/absent is not in") as caught:
        load_backbone("hf-hub:alice/absent")
    assert one_line(caught)
    with pytest.raises(ConnectionError, match=reason) as caught:
        push_to_hub(directory, REPO)
    assert one_line(caught)


def test_push_without_a_login_asks_for_one_before_any_request(hub, tmp_path, monkeypatch):
    directory = exported(tmp_path, random_backbone())
    monkeypatch.setattr("mixco_lightly.backbones.upload.get_token", lambda: None)
    with pytest.raises(PermissionError, match=r"hf auth login.*HF_TOKEN") as caught:
        push_to_hub(directory, REPO)
    assert one_line(caught)
    assert not hub.requests
    push_to_hub(directory, REPO, token=TOKEN)
    assert hub.files(REPO).keys() == FILES


def test_push_with_a_token_that_may_not_write_is_one_line(hub, tmp_path):
    directory = exported(tmp_path, random_backbone())
    with pytest.raises(PermissionError, match=f"The Hub refuses {REPO}") as caught:
        push_to_hub(directory, REPO, token="hf_reader")
    assert one_line(caught)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alice/absent", "There is no repository alice/absent"),
        ("alice/empty", "alice/empty on the Hub lacks backbone.json or model.safetensors"),
        ("alice/half", "alice/half on the Hub lacks backbone.json or model.safetensors"),
        ("alice/empty@later", "alice/empty on the Hub has no revision 'later'"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(name, message, hub, tmp_path):
    exported(tmp_path, random_backbone())
    hub.commit("alice/empty", {"pytorch_model.bin": b"a pickle"})
    described = (tmp_path / "export" / "backbone.json").read_bytes()
    hub.commit("alice/half", {"backbone.json": described})
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load_backbone(f"hf-hub:{name}")
    assert one_line(caught)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "", "alice/", "alice/a/b", "../alice/a", "alice/..", "alice/a b"),
        *("alice/a\n", "https://hub/alice/a"),
        *("alice/a@", "alice/a@../../main", "alice/a@a..b", "alice/a@b@c"),
    ],
)
def test_a_name_that_is_none_is_refused_before_any_request(name, hub, tmp_path):
    with pytest.raises(ValueError, match=r"A name on the Hub is USER/NAME|A revision is a branch"):
        load_backbone(f"hf-hub:{name}")
    repo_id, at, revision = name.partition("@")
    with pytest.raises(ValueError, match=r"A name on the Hub is USER/NAME|A revision is a branch"):
        push_to_hub(tmp_path, repo_id, revision=revision if at else None)
    assert not hub.requests


def test_a_damaged_export_is_not_pushed(hub, tmp_path):
    directory = exported(tmp_path, random_backbone())
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="not as they were exported"):
        push_to_hub(directory, REPO)
    assert not hub.requests


def test_paths_of_the_machine_are_not_pushed_and_the_other_options_are(hub, tmp_path):
    own = {"dataset": "/home/alice/mine.py:create", "transform": "lightly.transforms:MoCoV2"}
    training = TRAINING | own
    directory = exported(tmp_path, random_backbone(), training=training, metrics=METRICS)
    push_to_hub(directory, REPO)
    files = hub.files(REPO)
    assert not any(b"/home/alice" in content for content in files.values())
    described = json.loads(files["backbone.json"])
    kept = {name: x for name, x in training.items() if name not in ("data_dir", "output_dir")}
    assert described["training"] == kept | {"dataset": "mine.py:create"}
    assert described["metrics"] == METRICS


def test_the_repositorys_card_is_replaced_unless_it_is_to_stay(hub, tmp_path):
    directory = exported(tmp_path, random_backbone())
    push_to_hub(directory, REPO, license="cc-by-4.0")
    hub.commit(REPO, {"README.md": b"Mine."})
    push_to_hub(directory, REPO, model_card=False)
    assert hub.files(REPO)["README.md"] == b"Mine."
    push_to_hub(directory, REPO)
    assert hub.files(REPO)["README.md"].startswith(b"---\n")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_the_cards_header_names_the_library_that_loads_it_and_a_license_only_if_given(
    name, tmp_path
):
    directory = exported(tmp_path, random_backbone(name=name), training=TRAINING)
    data = ModelCard(create_model_card(directory, REPO)).data.to_dict()
    library = {"test_vit": "timm", "test_resnet": "mixco-lightly"}[name]
    tags = ["mixco-lightly", *(["timm"] if library == "timm" else []), "moco"]
    assert data == {
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "tags": tags,
    }
    licensed = ModelCard(create_model_card(directory, REPO, license="mit")).data.to_dict()
    assert licensed == {**data, "license": "mit"}


def test_the_cards_code_gives_the_features(hub, tmp_path):
    backbone = random_backbone()
    directory = exported(tmp_path, backbone)
    push_to_hub(directory, REPO)
    here, in_timm = re.findall(r"```python\n(.*?)```", create_model_card(directory, REPO), re.S)
    image = Image.new("RGB", (50, 40), "red")
    names = {"image": image}
    exec(compile(here, "card", "exec"), names)  # noqa: S102
    expected = load_backbone(directory)(names["backbone"].transform(image).unsqueeze(0))
    assert torch.equal(names["features"], expected)
    exec(compile(in_timm, "card", "exec"), names)  # noqa: S102
    assert torch.equal(features_of(names["model"].eval()), features_of(backbone))


def test_the_pages_code_computes_the_same_features_on_every_way(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names = {}
    exec(compile(code, "page", "exec"), names)  # noqa: S102
    expected = features_of(names["backbone"].eval())
    for network in ("here", "in_timm", "from_hub", "in_timm_from_hub"):
        assert torch.equal(features_of(names[network].eval()), expected)


def test_the_card_says_what_differs_from_timm_instead_of_how_timm_loads_it(tmp_path):
    card = create_model_card(exported(tmp_path, random_backbone(name="test_resnet")), REPO)
    assert "timm alone cannot load it" in card
    assert (
        "- Without their stride (convolutions have at most 3x3 pixels): conv1.0, maxpool." in card
    )
    assert "timm.create_model" not in card


def test_the_card_has_the_figures_with_their_protocol_and_the_options_as_a_file(tmp_path):
    directory = exported(tmp_path, random_backbone(), training=TRAINING, metrics=METRICS)
    card = create_model_card(directory)
    assert "| linear probe, top-1 | 71.23 | not measured |" in card
    assert "| kNN, top-1 | 68.00 | 31.50 |" in card
    assert "seconds" not in card
    assert (
        "Protocol: cifar10, test images; kNN with k = 20; trained in bf16-mixed, measured in "
        "float32; one run with seed 3."
    ) in card
    options = re.search(r"```yaml\n(.*?)```", card, re.S)[1]
    assert 'dataset: "cifar10"\nepochs: 30\nprecision: "bf16-mixed"\nseed: 3\n' in options
    assert "learning_rate" not in options
    assert "`mixco-lightly moco --config options.yaml`" in card
    assert "Versions: torch 2.14.1." in card
    assert "resize the shorter side to 32 pixels (bilinear), crop 32x32 pixels" in card
    assert "normalise with mean [0.1, 0.2, 0.3] and std [0.4, 0.5, 0.6]" in card


def test_a_card_without_facts_says_so(tmp_path):
    card = create_model_card(export_backbone(random_backbone(), tmp_path))
    assert card.count("The export does not record it.") == 1
    assert "The export records none." in card
    assert "normalise as in the training, which the export does not record" in card
    assert "timm.create_model('local-dir:DIRECTORY', pretrained=True, num_classes=0)" in card
