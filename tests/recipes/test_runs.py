"""The recipes as their users call them."""

import csv
import json
import re
from collections import Counter

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounterWithBackend

from mixco_lightly import load_backbone
from tests.run_recipe import RECIPES, TINY, Program, run, tiny_run


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("moco", ["--memory_bank_size", 7]),
        ("moco", ["--memory_bank_size", 64, "--mix_weight", 0, "--backbone", "test_vit"]),
        ("simclr", []),
    ],
)
def test_a_run_leaves_every_file_and_figure_behind(recipe, options, image_folder, tmp_path):
    output = run(recipe, *tiny_run(image_folder, "--output_dir", "run", *options), cwd=tmp_path)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "metrics.csv", "checkpoints", "model.safetensors"),
        *("backbone.json", "config.json", "curves.png", "summary.json"),
    }
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("linear_top1", "sklearn_top1", "knn_top1", "random_init_linear_top1"):
        assert 0 <= summary[name] <= 100
    assert summary["linear_top5"] == 100  # two classes
    assert summary["epochs"] == 2
    assert summary["images_per_second"] > 0
    assert 100 < summary["peak_megabytes"] < 20_000
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "random initialisation" in output
    assert "epoch 2/2" in output
    backbone = load_backbone(folder)
    assert backbone(torch.rand(2, 3, 16, 16)).shape == (2, backbone.feature_dim)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 3, 3]
    assert [bool(row["knn_top1"]) for row in rows] == [False, False, True]
    for row in rows[:2]:
        weight = float(options[3]) if "--mix_weight" in options else 1.0
        total = float(row["contrast"]) + weight * float(row["mix"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
        assert (float(row["mix"]) == 0) == (weight == 0)
        assert -1 <= float(row["negative_similarity"]) <= float(row["positive_similarity"]) <= 1
        assert float(row.get("lam") or 0) > 0 or weight == 0
    # The cosine at steps 1 and 3 of 4, which is three quarters and nothing.
    highest = yaml.safe_load((folder / "config.yaml").read_text())["learning_rate"]
    rates = [float(row["learning_rate"]) / highest for row in rows[:2]]
    assert rates == pytest.approx([0.75, 0], abs=1e-6)


def test_evaluate_measures_a_run_on_several_datasets_and_a_plain_timm_model(
    image_folder, tmp_path, run_here
):
    run(
        "moco",
        *tiny_run(image_folder, "--memory_bank_size", 8, "--output_dir", "run"),
        cwd=tmp_path,
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    quiet = ["--num_workers", 0, "--knn_k", 5]
    output = run("evaluate", "--backbone_dir", "run", *quiet, cwd=tmp_path)
    assert "scikit-learn" in output
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    results = {record["protocol"]: record["top1"] for record in report["results"]}
    assert results["torch"] == pytest.approx(summary["linear_top1"])
    assert results["sklearn"] == pytest.approx(summary["sklearn_top1"])
    assert results["knn"] == pytest.approx(summary["knn_top1"])

    several = ["--dataset", "digits", "imagefolder", "--protocol", "knn"]
    code, _, _ = run_here(
        *("evaluate", "--backbone", "test_vit", "--image_size", 16, *quiet, *several),
        *("--data_dir", image_folder, "--output_dir", tmp_path / "plain"),
    )
    assert code == 0
    report = json.loads((tmp_path / "plain" / "evaluation.json").read_text())
    assert [record["dataset"] for record in report["results"]] == ["digits", "imagefolder"]
    assert report["results"][0]["top1"] > 30  # chance is 10


def test_print_config_prints_yaml_that_config_takes_back(tmp_path, run_here):
    code, printed, _ = run_here("moco", "--epochs", 3, "--seed", 5, "--print_config")
    assert code == 0
    assert yaml.safe_load(printed)["epochs"] == 3
    (tmp_path / "mine.yaml").write_text(printed)
    code, again, _ = run_here("moco", "--config", tmp_path / "mine.yaml", "--print_config")
    assert code == 0
    assert again == printed


@pytest.mark.parametrize("preset", sorted((RECIPES / "presets").glob("*.yaml")), ids=str)
def test_every_preset_is_read_by_the_recipe_in_its_name(preset, run_here):
    name = preset.stem.removesuffix("-crop-flip")
    recipe = name.rpartition("-")[2].replace("study", "compare").replace("mixmask", "unmix")
    code, printed, _ = run_here(recipe, "--config", preset, "--print_config")
    assert code == 0
    options = yaml.safe_load(printed)
    written = yaml.safe_load(preset.read_text())
    assert {name: options[name] for name in written} == written


@pytest.mark.parametrize(
    "recipe",
    [
        *("moco", "simclr", "imix", "unmix", "selfcon", "evaluate", "compare", "paper"),
        *("export", "release", "draw_mixtures"),
    ],
)
def test_help_has_a_line_for_every_option(recipe, run_here):
    code, output, _ = run_here(recipe, "--help")
    assert code == 0
    assert f"python recipes/{recipe}.py" in output
    lines = [line.strip() for line in output.splitlines()]
    code, printed, _ = run_here(recipe, "--print_config")
    for name in yaml.safe_load(printed):
        # The description stands behind the option or, where that is long, in the next line.
        at = next(i for i, line in enumerate(lines) if re.match(rf"--{name}\b", line))
        described = re.sub(r"--\S+|[A-Z_]{3,}|[\[{].*?[\]}]|,", "", lines[at]).strip()
        assert described or lines[at + 1][0].isupper(), name


@pytest.mark.parametrize("mixing", [None, "cutmix"])
def test_draw_mixtures_writes_a_picture_of_one_mixing_or_of_all(mixing, tmp_path, run_here):
    output = tmp_path / "mixtures.png"
    options = ["--mixing", mixing] if mixing else []
    code, printed, _ = run_here("draw_mixtures", "--pairs", 3, "--output", output, *options)
    assert code == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    drawn = mixing or "mixup, cutmix, mask, mixup-or-cutmix"
    assert printed.strip().endswith(f"3 mixtures of digits are in {output}: {drawn}.")
    height = int.from_bytes(output.read_bytes()[20:24], "big")
    assert height == (400 if mixing else 1000)


BAD_OPTIONS = {
    "unknown backbone": (["--backbone", "resnet81"], "resnet18"),
    "unknown dataset": (["--dataset", "mnist"], "'mnist'"),
    "missing folder": (["--dataset", "imagefolder", "--image_size", 16], "nowhere/train"),
    "missing tiny-imagenet": (["--dataset", "tiny-imagenet"], "wnids.txt"),
    "missing cifar": (["--dataset", "cifar10"], "--download"),
    "no image size": (["--dataset", "imagefolder"], "--image_size"),
    "batch too large": (["--batch_size", 5000], "1348 images"),
    "batch of one": (["--batch_size", 1], "at least 2"),
    "zero temperature": (["--temperature", 0], "temperature"),
    "negative temperature": (["--mix_temperature", -1], "mix_temperature"),
    "infinite temperature": (["--temperature", "inf"], "temperature"),
    "negative learning rate": (["--learning_rate", -0.1], "learning_rate"),
    "infinite learning rate": (["--learning_rate", "inf"], "learning_rate"),
    "negative weight decay": (["--weight_decay", -1], "weight_decay"),
    "infinite weight decay": (["--weight_decay", "inf"], "weight_decay"),
    "infinite alpha": (["--alpha", "inf"], "alpha"),
    "infinity in a dictionary": (["--backbone_kwargs", '{"drop_rate": .inf}'], "backbone_kwargs"),
    "not a number": (["--epochs", "many"], "epochs"),
    "unknown option": (["--temprature", 0.1], "temprature"),
    "missing config": (["--config", "absent.yaml"], "absent.yaml"),
    "warm-up of the whole run": (["--warmup_epochs", 30], "--warmup_epochs"),
    "unknown accelerator": (["--accelerator", "abacus"], "abacus"),
    "unknown precision": (["--precision", "17"], "17"),
    "no checkpoint": (["--resume"], "last.ckpt"),
    "impossible size": (["--backbone", "inception_v3", "--image_size", 32], "inception_v3"),
    "more digits than Python reads": (["--epochs", "9" * 5000], "epochs"),
    "number of 64 bits": (["--projection_dim", 2**63], "--projection_dim must be at most"),
    "pretrained twice": (["--backbone_kwargs", '{"pretrained": true}'], "has pretrained"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_input_ends_with_one_line_that_names_it(case, tmp_path, monkeypatch, run_here):
    options, named = BAD_OPTIONS[case]
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", "digits", "--data_dir", "nowhere"]
    code, _, error = run_here("moco", *TINY, *data, *options)
    assert code not in (0, None)
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert named in last
    assert not (tmp_path / "runs").exists()


def test_a_lack_of_memory_is_one_line_and_other_runtime_errors_are_not_hidden(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from mixco_lightly.training.errors import fail_in_one_line

    with pytest.raises(SystemExit) as stop, fail_in_one_line():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried 4 TB")
    assert str(stop.value).startswith("error: not enough memory: ")
    assert "\n" not in str(stop.value)
    with pytest.raises(RuntimeError, match="shapes"), fail_in_one_line():
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("text", ["config.x: 3\n", f"dataset: {'9' * 5000}\n"])
def test_a_file_that_the_parser_stumbles_over_is_one_line(text, tmp_path, monkeypatch, run_here):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.yaml").write_text(text)
    code, _, error = run_here("moco", *TINY, "--config", "options.yaml")
    assert code == 2
    assert error.startswith("error: the options cannot be read: ")
    assert len(error.strip().splitlines()) == 1


def test_an_option_that_a_file_leaves_empty_is_named(tmp_path, monkeypatch, run_here):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.yaml").write_text("epochs: 1\nkeep_every_n_epochs:\n")
    code, _, error = run_here("moco", *TINY, "--config", "options.yaml")
    assert code == 2
    assert "--keep_every_n_epochs has no value" in error.strip().splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_broken_image_stops_the_run_and_is_named(image_folder, tmp_path):
    broken = image_folder / "train" / "red" / "05.png"
    broken.write_bytes(broken.read_bytes()[:100])
    in_every_epoch = ["--keep_decoded=false", "--overwrite"]
    for options in ([], in_every_epoch, ["--num_workers", 1, *in_every_epoch]):
        program = Program(RECIPES / "moco.py", *tiny_run(image_folder, *options), cwd=tmp_path)
        result = program.wait()
        assert result.returncode == 1
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: The image ")
        assert str(broken) in last


def test_images_are_augmented_in_batches_if_they_have_one_size_and_one_by_one_if_not(
    image_folder, tmp_path, run_here
):
    def recorded(name):
        return yaml.safe_load((tmp_path / name / "config.yaml").read_text())

    options = tiny_run(image_folder, "--memory_bank_size", 8)
    code, printed, _ = run_here("moco", *options, "--output_dir", tmp_path / "one")
    assert code == 0
    assert "augmented by device" in printed
    assert recorded("one")["augment"] == "device"
    decoded = {path.name for path in (image_folder / ".decoded").iterdir()}
    assert decoded == {"train.npy", "train.json", "test.npy", "test.json"}

    image = image_folder / "train" / "red" / "00.png"
    Image.open(image).resize((20, 16)).save(image)
    code, printed, _ = run_here("moco", *options, "--output_dir", tmp_path / "several")
    assert code == 0
    assert "augmented by workers" in printed
    assert recorded("several")["augment"] == "workers"
    device = ["--augment", "device", "--output_dir", tmp_path / "none"]
    code, _, error = run_here("moco", *options, *device)
    assert code == 1
    assert "use --augment workers" in error
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("recipe", ["moco", "simclr", "selfcon"])
def test_a_recipes_header_names_the_precision_of_its_figures(recipe):
    header = " ".join((RECIPES / f"{recipe}.py").read_text().split('"""')[1].split())
    assert "last of 30 epochs, in float32 (--precision 32-true)" in header


def test_precision_auto_is_chosen_printed_and_recorded(
    image_folder, tmp_path, run_here, monkeypatch
):
    from mixco_lightly import machine

    options = tiny_run(image_folder, "--memory_bank_size", 8, "--accelerator", "cpu")
    options += ["--precision", "auto"]
    for is_fast, precision in [(False, "32-true"), (True, "bf16-mixed")]:
        monkeypatch.setattr(machine, "has_fast_bfloat16", lambda device, is_fast=is_fast: is_fast)
        folder = tmp_path / precision
        code, printed, _ = run_here("moco", *options, "--output_dir", folder)
        assert code == 0
        assert f"precision {precision}" in printed
        assert yaml.safe_load((folder / "config.yaml").read_text())["precision"] == precision


@pytest.mark.parametrize(
    ("recipe", "options", "parts"),
    [
        (
            "moco",
            ["--memory_bank_size", 8],
            {"Backbone": 2, "MoCoProjectionHead": 2, "MixCoLoss": 1},
        ),
        pytest.param(
            "selfcon",
            ["--objective", "selfcon-mu", "--mix_weight", 1],
            {"MultiExitBackbone": 1, "MoCoProjectionHead": 2, "SelfConLoss": 1, "MixCoLoss": 1},
            marks=pytest.mark.slow,  # 9 s
        ),
    ],
    ids=["moco", "selfcon"],
)
def test_compile_makes_graphs_of_every_network_head_and_loss_and_changes_no_figure(
    recipe, options, parts, image_folder, tmp_path, run_here, monkeypatch
):
    # Without the C++ compiler, which takes minutes for what is not this package's, and without
    # tracing backward, which takes seconds and is tested for the losses.
    compile_function, compiled = torch.compile, []

    def compile_and_count(function, **options):
        backend = CompileCounterWithBackend("eager")
        compiled.append((type(function.__self__).__name__, backend))
        return compile_function(function, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_and_count)
    torch.compiler.reset()
    options = tiny_run(image_folder, *options, "--knn_every_n_epochs", 0, "--protocol", "knn")
    options += ["--random_init", "false", "--precision", "32-true"]
    losses = []
    for compile_parts in ("false", "true"):
        folder = tmp_path / compile_parts
        flags = [f"--compile={compile_parts}", "--output_dir", folder]
        code, _, error = run_here(recipe, *options, *flags)
        assert code == 0, error
        with (folder / "metrics.csv").open(newline="") as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file) if row["loss"]])
        if compile_parts == "false":
            assert not compiled
    assert Counter(name for name, _ in compiled) == parts
    assert all(backend.frame_count > 0 for _, backend in compiled), compiled
    # The same run but for rounding.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    names = [load_file(tmp_path / c / "model.safetensors").keys() for c in ("false", "true")]
    assert names[0] == names[1]
    states = [
        torch.load(tmp_path / c / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for c in ("false", "true")
    ]
    assert states[0].keys() == states[1].keys()


class Part(torch.nn.Linear):
    """A layer with a forward outside of torch.nn: torch 2.10 compiles none inside."""

    def forward(self, x):
        return super().forward(x)


def test_compile_compiles_each_of_more_parts_than_torchs_limit(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from mixco_lightly.training.trainer import compile_parts

    torch.compiler.reset()
    backend, compile_function = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda part: compile_function(part, backend=backend))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    heads = torch.nn.ModuleList(Part(4, i + 1) for i in range(12))
    model = torch.nn.ModuleDict({"backbone": Part(4, 20), "heads": heads})
    compile_parts(model)
    for part in (model["backbone"], *heads):
        part(torch.rand(2, 4))
    assert backend.frame_count == 13


def test_compile_without_a_compiler_is_one_line(image_folder, tmp_path, run_here, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    options = ["--compile", "--accelerator", "cpu", "--output_dir", tmp_path / "run"]
    code, _, error = run_here("moco", *tiny_run(image_folder, *options))
    assert code == 1
    assert "--compile needs a C++ compiler" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_sync_batchnorm_on_several_cpu_processes_is_one_line_before_anything_is_written(
    accelerator, image_folder, tmp_path, run_here, monkeypatch
):
    from mixco_lightly import machine

    monkeypatch.setattr(machine, "runs_on_cpu", lambda accelerator: True)
    options = ["--sync_batchnorm", "--devices", 2, "--accelerator", accelerator]
    options += ["--output_dir", tmp_path / "run"]
    code, _, error = run_here("simclr", *tiny_run(image_folder, *options))
    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith(f"error: --sync_batchnorm needs GPUs, but --accelerator {accelerator}")
    assert not (tmp_path / "run").exists()


def test_sync_batchnorm_gives_lightning_the_plugin_that_keeps_timms_activations(
    image_folder, tmp_path, run_here, monkeypatch
):
    from mixco_lightly.models.sync_batchnorm import TimmSyncBatchNorm

    given = []

    def fit(trainer, *args, **kwargs):
        given.append(trainer.strategy._layer_sync)
        raise SystemExit(3)

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", fit)
    # Otherwise Lightning would start the second process.
    monkeypatch.setattr("mixco_lightly.machine.runs_on_cpu", lambda accelerator: False)
    options = ["--devices", 2, "--accelerator", "cpu", "--augment", "workers"]
    for number, flags in enumerate(([], ["--sync_batchnorm"])):
        run = ["--output_dir", tmp_path / str(number), *flags]
        code, _, error = run_here("simclr", *tiny_run(image_folder, *options, *run))
        assert code == 3, error
    assert given[0] is None
    assert type(given[1]) is TimmSyncBatchNorm


def test_sync_batchnorm_has_no_effect_on_one_device(image_folder, tmp_path, run_here):
    options = tiny_run(image_folder, "--memory_bank_size", 8, "--accelerator", "cpu")
    options += ["--protocol", "knn", "--random_init", "false", "--knn_every_n_epochs", 0]
    for flag in ("false", "true"):
        run = [f"--sync_batchnorm={flag}", "--output_dir", tmp_path / flag]
        code, _, error = run_here("moco", *options, *run)
        assert code == 0, error
    weights = [load_file(tmp_path / flag / "model.safetensors") for flag in ("false", "true")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_classes_that_differ_between_train_and_test_are_named(image_folder, tmp_path, run_here):
    (image_folder / "test" / "red").rename(image_folder / "test" / "green")
    code, _, error = run_here("moco", *tiny_run(image_folder, "--output_dir", tmp_path / "run"))
    assert code == 1
    assert "green, red" in error


def test_a_folder_with_a_run_is_neither_replaced_nor_resumed_with_other_options(
    image_folder, tmp_path, run_here
):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"not a checkpoint")
    options = tiny_run(image_folder, "--output_dir", folder, "--stem", "timm")
    options += ["--precision", "32-true", "--augment", "device"]  # what auto takes here
    options += ["--optimizer", "sgd", "--learning_rate", 0.06, "--weight_decay", 5e-4]
    options += ["--warmup_epochs", 0]
    code, printed, _ = run_here("moco", *options, "--print_config")
    (folder / "config.yaml").write_text(printed)

    code, _, error = run_here("moco", *options)
    assert code == 1
    assert "--overwrite" in error
    code, _, error = run_here("moco", *options, "--resume", "--temperature", 0.1)
    assert code == 1
    assert "temperature 0.2, not 0.1" in error
    code, _, error = run_here("moco", *options, "--resume")
    assert code == 1
    assert "last.ckpt is damaged" in error
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == b"not a checkpoint"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--backbone_dir"),
        (["--backbone", "resnet18", "--backbone_dir", "run"], "--backbone_dir"),
        (["--backbone_dir", "absent"], "backbone.json"),
        (["--backbone", "resnet81"], "resnet18"),
        (["--backbone", "test_vit", "--dataset", "mnist"], "mnist"),
        (["--backbone", "test_vit", "--protocol", "svm"], "svm"),
        (
            ["--backbone", "test_vit", "--dataset", "digits", "--data_dir", "a", "b"],
            "2 folders for 1 datasets",
        ),
        (["--backbone", "test_vit", "--device", "abacus"], "--device abacus"),
    ],
)
def test_evaluate_refuses_bad_input_in_one_line(options, named, run_here):
    code, _, error = run_here("evaluate", *options)
    assert code not in (0, None)
    assert "Traceback" not in error
    assert named in error


@pytest.mark.parametrize(
    ("recipe", "what"), [("moco", "A key is NaN or infinite in step "), ("simclr", "The loss is ")]
)
def test_a_run_that_diverges_stops_and_keeps_no_checkpoint_of_it(
    recipe, what, image_folder, tmp_path, run_here
):
    folder = tmp_path / "run"
    options = ["--learning_rate", 1e30, "--output_dir", folder]
    code, _, error = run_here(recipe, *tiny_run(image_folder, *options))
    assert code == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"error: {what}")
    assert "There is no checkpoint" in last
    assert "step " in last
    assert "--learning_rate" in last
    assert not (folder / "checkpoints" / "last.ckpt").exists()


def test_random_initialisation_is_random_for_a_run_from_published_weights_too(
    image_folder, tmp_path, run_here, monkeypatch
):
    create_model = timm.create_model

    def with_published_weights(name, pretrained=False, **kwargs):
        model = create_model(name, **kwargs)
        if pretrained:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
        return model

    monkeypatch.setattr(timm, "create_model", with_published_weights)
    random = []
    for pretrained in ("false", "true"):
        folder = tmp_path / pretrained
        options = ["--epochs", 1, f"--pretrained={pretrained}", "--stem", "timm"]
        code, _, _ = run_here("simclr", *tiny_run(image_folder, *options, "--output_dir", folder))
        assert code == 0
        summary = json.loads((folder / "summary.json").read_text())
        # Not the calibration, which changes with the statistics that images are normalised by.
        accuracies = {name: x for name, x in summary.items() if "_top" in name}
        random.append({name: x for name, x in accuracies.items() if name.startswith("random_init")})
    assert random[0] == random[1]
    assert len(random[0]) == 3


def test_published_weights_are_given_images_normalised_as_their_own(tmp_path, run_here):
    weights = tmp_path / "weights.safetensors"
    published = timm.create_model("test_resnet")
    save_file(published.state_dict(), weights)
    kwargs = json.dumps({"pretrained_cfg_overlay": {"file": str(weights), "mean": [0.1, 0.2, 0.3]}})
    code, _, _ = run_here(
        *("moco", *TINY, "--epochs", 1, "--train_fraction", 0.2, "--protocol", "knn"),
        *("--pretrained", "--backbone_kwargs", kwargs, "--output_dir", tmp_path / "run"),
        *("--random_init=false", "--knn_every_n_epochs", 0),
    )
    assert code == 0
    described = json.loads((tmp_path / "run" / "backbone.json").read_text())
    assert described["mean"] == [0.1, 0.2, 0.3]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    quiet = ["--num_workers", 0, "--knn_k", 5, "--protocol", "knn"]
    code, _, _ = run_here("evaluate", "--backbone_dir", tmp_path / "run", *quiet)
    assert code == 0
    (record,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"]
    # Within one of the 449 images, which rounding can turn. Digits' own normalisation would give
    # another figure.
    assert record["top1"] == pytest.approx(summary["knn_top1"], abs=100 / 449 + 1e-6)
