"""What comes from others, files and names, is data: it runs nothing and writes nowhere else."""

import ast
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixco_lightly import create_backbone, export_backbone, load_backbone
from mixco_lightly.data.catalogue import create_dataset, get_dataset
from mixco_lightly.studies.plan import plan_runs
from tests.run_recipe import RECIPES

SOURCES = sorted(
    path for folder in (RECIPES, RECIPES.parent / "mixco_lightly") for path in folder.rglob("*.py")
)
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "code"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "torch.jit.load",
    "torch.hub.load",
    "pd.read_pickle",
}
# Calls that are safe with this argument alone.
NEEDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def find_offences(source):
    """Code in a source that could run what is in a file or a text."""
    offences = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            offences += [
                alias.name
                for alias in node.names
                if alias.name.partition(".")[0] in FORBIDDEN_MODULES
            ]
        elif isinstance(node, ast.ImportFrom):
            # An exception of pickle's, to be caught, unpickles nothing.
            names = {alias.name for alias in node.names} - {"UnpicklingError"}
            if (node.module or "").partition(".")[0] in FORBIDDEN_MODULES and names:
                offences.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {argument.arg: argument.value for argument in node.keywords}
            if name in FORBIDDEN_CALLS:
                offences.append(name)
            if name in NEEDED:
                argument, value = NEEDED[name]
                constant = given.get(argument)
                if not isinstance(constant, ast.Constant) or constant.value is not value:
                    offences.append(f"{name} without {argument}={value}")
            shell = given.get("shell")
            if shell is not None and not (isinstance(shell, ast.Constant) and not shell.value):
                offences.append(f"{name} with a shell")
    return offences


def test_no_source_evaluates_text_or_unpickles():
    offences = {str(path): find_offences(path.read_text()) for path in SOURCES}
    assert len(offences) > 60
    assert {name: found for name, found in offences.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "import pickle",
        "import pickle as p, json",
        "from pickle import loads",
        "from dill import *",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.FullLoader)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_the_search_finds(source):
    assert len(find_offences(f"def f():\n    {source}")) == 1


def test_the_search_leaves_methods_of_these_names_alone():
    source = "from pickle import UnpicklingError\nmodel.eval()\nmodel.compile()\nyaml.safe_load(x)"
    assert find_offences(source) == []
    assert len(SOURCES) > 30


YAML = {
    "object": "seed: !!python/object/apply:os.mkdir [planted]",
    "module": "seed: !!python/object/apply:subprocess.run [[mkdir, planted]]",
    "name": "seed: !!python/name:os.getpid",
    "new": "!!python/object/new:os.mkdir [planted]",
    "instance": "backbone_kwargs: {a: !!python/object:os.stat_result {}}",
}


@pytest.mark.parametrize("case", YAML)
@pytest.mark.parametrize("recipe", ["moco", "selfcon", "evaluate", "compare"])
def test_a_yaml_file_that_asks_for_python_is_one_line(
    recipe, case, tmp_path, run_here, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(YAML[case])
    code, _, error = run_here(recipe, "--config", "mine.yaml")
    assert code == 2
    lines = error.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert os.listdir() == ["mine.yaml"]


NAMES = ["..", "../..", "../evil", "/tmp/evil", "a/../../evil", ".", "", "a\0b", "~", "..\\evil"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_in_a_study_leads_out_of_its_folder(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from compare import CompareConfig, find_config_classes

    config = CompareConfig(
        base={"epochs": 1, "mix_weight": 0},
        changes={name: {"epochs": 2}},
        groups={name: {}},
        base_name="plain",
        seeds=[0],
        transfer={name: {"dataset": "digits"}},
    )
    root = tmp_path / "study"
    for run in plan_runs(config, root, *find_config_classes()):
        for folder in (run.folder, run.transfer_folder(name)):
            resolved = folder.resolve()
            assert root in resolved.parents
            assert len(resolved.relative_to(root).parts) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_a_data_set_is_taken_for_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="There is no dataset"):
        create_dataset(name, tmp_path, train=True)
    with pytest.raises(ValueError, match="There is no dataset"):
        get_dataset(name)


def test_annotations_cannot_name_images_of_other_folders(tmp_path):
    (tmp_path / "val" / "images").mkdir(parents=True)
    (tmp_path / "wnids.txt").write_text("n01")
    for name in ("../../secret.JPEG", "/etc/secret.JPEG", "..\\secret.JPEG"):
        (tmp_path / "val" / "val_annotations.txt").write_text(f"{name}\tn01\n")
        with pytest.raises(ValueError, match="names an image in another folder"):
            create_dataset("tiny-imagenet", tmp_path, train=False)


class Payload:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


@pytest.fixture
def export(tmp_path, monkeypatch):
    """An export of the first format, which has no checksum that an attacker would write anew."""
    monkeypatch.chdir(tmp_path)
    export_backbone(create_backbone("test_resnet", 32), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "backbone.safetensors")
    edit(tmp_path, format="mixco-lightly backbone 1")
    load_backbone(tmp_path)
    return tmp_path


def edit(folder, **changes):
    path = folder / "backbone.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def header(length, text=b"{}"):
    return struct.pack("<Q", length) + text


WEIGHTS = {
    "pickle": lambda path: torch.save(Payload(), path),
    "header longer than the file": lambda path: path.write_bytes(header(2**62)),
    "header of no end": lambda path: path.write_bytes(header(100_000, b"[" * 100_000)),
    "tensor beyond the file": lambda path: path.write_bytes(
        (lambda text: header(len(text), text))(
            b'{"x":{"dtype":"F32","shape":[4294967296],"data_offsets":[0,17179869184]}}'
        )
    ),
    "no tensor": lambda path: path.write_bytes(header(2)),
    "other tensors": lambda path: save_file({"x": torch.ones(2)}, path),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_malicious_weights_are_an_error_that_names_them(case, export):
    WEIGHTS[case](export / "backbone.safetensors")
    with pytest.raises(ValueError, match=r"backbone\.safetensors"):
        load_backbone(export)
    assert not (export / "planted").exists()


DESCRIPTIONS = {
    "another hub": {"name": "hf-hub:evil/model"},
    "a folder": {"name": "local-dir:/tmp/evil"},
    "a path": {"name": "../../evil"},
    "a list": {"name": ["resnet18"]},
    "weights from a file": {"timm_kwargs": {"checkpoint_path": "evil.pth"}},
    "weights from a cache": {"timm_kwargs": {"cache_dir": "evil"}},
    "weights from anywhere": {"timm_kwargs": {"pretrained_cfg": {"url": "http://evil"}}},
    "weights over them": {"timm_kwargs": {"pretrained_cfg_overlay": {"file": "evil.pth"}}},
    "a layer by name": {"timm_kwargs": {"act_layer": "os.system"}},
    "chosen arguments": {"chosen_kwargs": {"checkpoint_path": "evil.pth"}},
    "a layer outside": {"removed_strides": ["__class__.__init__"]},
    "a huge image": {"name": "test_vit", "image_size": 10**9, "chosen_kwargs": {}},
    "no image": {"image_size": -1},
    "training": {"training": ["digits"]},
    "mean": {"mean": "0.5"},
    "std": {"std": [[1], {}]},
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_a_malicious_description_is_an_error_that_names_it(case, export):
    edit(export, **DESCRIPTIONS[case])
    with pytest.raises(ValueError, match=r"backbone\.json"):
        load_backbone(export)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "\0", '"\ud800"', "NaN", "1" * 5000],
    ids=["lists", "objects", "zero byte", "half a character", "NaN", "a long number"],
)
def test_malicious_json_is_an_error_that_names_it(text, export):
    (export / "backbone.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"backbone\.json"):
        load_backbone(export)


@pytest.mark.parametrize("training", [{"dataset": ["x"]}, {"dataset": "../evil"}, {"data_dir": 3}])
def test_what_an_export_says_of_its_training_is_checked_before_it_is_used(
    training, export, run_here
):
    edit(export, training={"dataset": "imagefolder", **training})
    before = sorted(export.iterdir())
    code, _, error = run_here("evaluate", "--backbone_dir", export)
    assert code == 1
    assert len(error.strip().splitlines()) == 1
    assert sorted(export.iterdir()) == before
