"""The forest plot of the committed studies, and the intervals in it."""

import importlib
import io
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from mixco_lightly.studies import forest
from mixco_lightly.studies.statistics import Difference, pooled_difference

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "recipes" / "results"
# 97.5% quantiles of Student's t from a printed table, by degrees of freedom.
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 9: 2.262, 11: 2.201}
STUDIES = [
    f"{name}-study"
    for name in [
        "augmentation",
        "budget",
        "capacity",
        "compute",
        "long",
        "simclr",
        "small",
        "transfer",
    ]
]


def interval(values):
    """Ends of the 95% interval of the mean, from the printed table."""
    n = len(values)
    half = QUANTILES[n - 1] * np.std(values, ddof=1) / math.sqrt(n)
    return np.mean(values) - half, np.mean(values) + half


def make_run(group, arm, seed, top1):
    return {
        "group": group,
        "arm": arm,
        "seed": seed,
        "recipe": "moco",
        "epochs": 2,
        "options": {"mix_weight": int(arm != "plain"), "seed": seed},
        "linear_top1": top1,
        "knn_top1": top1 / 2,
    }


def write_study(folder, runs, base_name="plain"):
    folder.mkdir(parents=True)
    results = {"base_name": base_name, "runs": runs}
    (folder / "results.json").write_text(json.dumps(results))


def make_setting(study, gain, base_runs, arm_runs, augmentations="full"):
    return forest.Setting(
        study=study,
        group="",
        arm="MixCo",
        augmentations=augmentations,
        epochs=(2, 2),
        differences={"linear_top1": Difference(gain, 1.0, 2.0)},
        base_runs=frozenset(base_runs),
        arm_runs=frozenset(arm_runs),
    )


def test_the_pooled_interval_is_students_over_the_settings_means():
    # Mean 3, deviation sqrt(((1-3)^2 + (2-3)^2 + (6-3)^2) / 2) = sqrt(7), t(2) = 4.303.
    pooled = pooled_difference([1.0, 2.0, 6.0])
    assert pooled.mean == 3
    assert pooled.deviation == pytest.approx(math.sqrt(7))
    assert pooled.half_width == pytest.approx(4.303 * math.sqrt(7) / math.sqrt(3), rel=1e-4)
    assert math.isnan(pooled_difference([1.0]).half_width)
    with pytest.raises(ValueError, match="no setting to pool"):
        pooled_difference([])


def test_settings_that_share_runs_are_pooled_as_their_average():
    settings = [
        make_setting("a", 1.0, "a", "A"),
        make_setting("b", 5.0, "b", "B"),
        make_setting("c", 3.0, "c", "AB"),  # links the two above
        make_setting("d", 8.0, "d", "D"),
    ]
    assert sorted(forest.average_linked(settings, "linear_top1")) == [3.0, 8.0]
    assert forest.pool(settings, "linear_top1") is None
    pooled = forest.pool([*settings, make_setting("e", 2.0, "e", "E")], "linear_top1")
    assert pooled.mean == pytest.approx((3 + 8 + 2) / 3)
    common_baseline = [settings[0], make_setting("f", 5.0, "a", "F")]
    assert forest.average_linked(common_baseline, "linear_top1") == [3.0]


def test_only_comparisons_with_plain_training_over_seeds_are_settings(tmp_path):
    pairs = [
        make_run("", arm, seed, top1 + seed)
        for arm, top1 in [("plain", 50), ("MixCo", 52)]
        for seed in (0, 1)
    ]
    more = [make_run("", "plain, 138 epochs", seed, 60) for seed in (0, 1)]
    write_study(tmp_path / "b-study", [*pairs, *more, make_run("", "i-Mix", 0, 51)])
    write_study(tmp_path / "selfcon", pairs, base_name="SupCon")
    # The runs of b-study again, under another group's name.
    write_study(tmp_path / "c-study", [{**run, "group": "again"} for run in pairs])
    (setting,) = forest.read_settings(tmp_path)
    assert (setting.study, setting.arm, setting.augmentations) == ("b-study", "MixCo", "full")
    assert setting.differences["linear_top1"] == (2, 0, 0)
    assert setting.differences["knn_top1"] == (1, 0, 0)
    with pytest.raises(ValueError, match=r"No study in .* compares with a base named plain"):
        forest.read_settings(tmp_path / "selfcon")


def test_an_arm_beside_plain_training_of_equal_compute_is_a_setting_that_is_not_independent(
    tmp_path,
):
    runs = [
        make_run("", arm, seed, top1)
        for arm, top1 in [("plain", 50), ("plain, 138 epochs", 51), ("MixCo", 54), ("i-Mix", 53)]
        for seed in (0, 1)
    ]
    for run in runs:
        run["epochs"] = 138 if "138" in run["arm"] else 100
    pairs = {"MixCo": "plain, 138 epochs", "i-Mix": "plain"}
    (tmp_path / "study").mkdir()
    results = {"base_name": "plain", "runs": runs, "study": {"equal_compute": pairs}}
    (tmp_path / "study/results.json").write_text(json.dumps(results))
    settings = forest.read_settings(tmp_path)
    assert [(x.arm, x.epochs, x.differences["linear_top1"].mean) for x in settings] == [
        ("MixCo", (100, 100), 4),
        ("MixCo", (138, 100), 3),
        ("i-Mix", (100, 100), 3),
    ]
    mixco = [setting for setting in settings if setting.arm == "MixCo"]
    assert forest.average_linked(mixco, "linear_top1") == [3.5]


def test_a_repetition_with_the_same_seeds_is_drawn_but_not_independent(tmp_path):
    def write(study, gain, seeds, **options):
        runs = [
            make_run("", arm, seed, 50 + gain * (arm == "MixCo"))
            for arm in ("plain", "MixCo")
            for seed in seeds
        ]
        for run in runs:
            run["options"] |= options
        write_study(tmp_path / study, runs)

    write("a-study", 2, (0, 1))
    write("b-study", 4, (0, 1), protocol=["knn"])  # measured by another protocol as well
    write("c-study", 9, (5, 6))
    settings = forest.read_settings(tmp_path)
    assert [setting.differences["linear_top1"].mean for setting in settings] == [2, 4, 9]
    assert forest.average_linked(settings, "linear_top1") == [3, 9]


def test_rows_are_in_sections_from_the_largest_gain_to_the_smallest():
    rows = forest.arrange(
        [
            make_setting("small", 1.0, "a", "A"),
            make_setting("both", 0.5, "b", "B"),
            make_setting("both", 4.0, "c", "C"),
            make_setting("gentle", 2.0, "d", "D", "crop-flip"),
        ]
    )
    linear = [row.differences["linear_top1"].mean for row in rows if row.differences]
    assert linear == [2.0, 4.0, 0.5, 1.0, pytest.approx(5.5 / 3), 1.875]
    titles = ["few augmentations", "usual augmentations", "all settings"]
    assert [row.study for row in rows if not row.differences] == titles
    assert [row.label for row in rows if row.pooled] == [
        "MixCo, 3 independent settings",
        "MixCo, 4 independent settings",
    ]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The rows of eight committed studies."""
    folder = tmp_path_factory.mktemp("results")
    for study in STUDIES:
        (folder / study).symlink_to(RESULTS / study)
    return forest.arrange(forest.read_settings(folder))


def test_every_committed_study_with_a_plain_base_is_drawn():
    bases = {
        path.parent.name: json.loads(path.read_text())["base_name"]
        for path in RESULTS.glob("*/results.json")
    }
    expected = {study for study, base in bases.items() if base == "plain"}
    assert expected >= set(STUDIES)
    rows = forest.arrange(forest.read_settings(RESULTS))
    drawn = [row.study for row in rows if row.differences and not row.pooled]
    assert set(drawn) == expected
    assert len(drawn) >= 14


def test_the_plotted_intervals_are_those_of_the_runs(rows):
    figure = forest.plot(rows)
    _, *panels = figure.axes
    for axis, name in zip(panels, ("linear_top1", "knn_top1"), strict=True):
        drawn = [
            (container.lines[0].get_xdata()[0], *container.lines[2][0].get_segments()[0][:, 0])
            for container in axis.containers
        ]
        expected, section = [], ""
        for row in rows:
            section = section if row.differences else row.study
            if not row.differences or row.pooled:
                continue
            runs = json.loads((RESULTS / row.study / "results.json").read_text())["runs"]
            # The group "few augmentations" is not named in the section of that name.
            groups = {run["group"] for run in runs}
            group = next(name for name in (row.label, section, "") if name in groups)
            top1 = {
                arm: np.array([x[name] for x in runs if (x["group"], x["arm"]) == (group, arm)])
                for arm in ("plain", "MixCo")
            }
            differences = top1["MixCo"] - top1["plain"]
            expected.append((differences.mean(), *interval(differences)))
        # Two studies compare one arm with two baselines; the last two settings have the usual
        # augmentations.
        assert [row.study for row in rows if row.differences].count("pooled") == 2
        assert rows[2].study == rows[3].study == "small-study"
        assert rows[10].study == rows[11].study == "compute-study"
        means = [mean for mean, _, _ in expected]
        few = [means[0], np.mean(means[1:3]), *means[3:9], np.mean(means[9:11]), means[11]]
        everything = [*few, *means[12:]]
        expected.insert(12, (np.mean(few), *interval(few)))
        expected.append((np.mean(everything), *interval(everything)))
        np.testing.assert_allclose(drawn, expected, atol=2e-3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=30)
    assert file.getvalue().startswith(b"\x89PNG")
    # No text of the first column reaches the second, and none the panels.
    texts = sorted(
        (text.get_window_extent() for text in figure.axes[0].texts if text.get_text()),
        key=lambda box: (round(box.y0 + box.y1), box.x0),
    )
    for left, right in itertools.pairwise(texts):
        if abs(left.y0 + left.y1 - right.y0 - right.y1) < 2:
            assert left.x1 < right.x0


def test_the_command_draws_and_prints_the_differences(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    compare = importlib.import_module("compare")
    path = tmp_path / "forest.png"
    options = ["--output_dir", str(RESULTS), "--forest", str(path)]
    monkeypatch.setattr(sys, "argv", ["compare.py", *options])
    compare.main()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "independent settings" in capsys.readouterr().out
