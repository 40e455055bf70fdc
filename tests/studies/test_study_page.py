"""A study's report.html: the table's figures, its curves, and links to the runs that have one."""

import json

from mixco_lightly.studies.plan import folder_name
from mixco_lightly.studies.report import tabulate
from mixco_lightly.studies.statistics import average_curves, paired_difference
from mixco_lightly.studies.study_page import (
    MAX_ARMS,
    choose_arms,
    draw_curves,
    draw_differences,
    report_study,
)
from tests.reports.parsed_page import Page

ARM = "MixCo $a$, <b>x</b>"


def study(seeds=(0, 1, 2), arms=("plain", ARM)):
    """Results of two groups, as results.json has them."""
    runs = [
        {
            **{"group": group, "arm": arm, "seed": seed, "recipe": "moco", "options": {}},
            "linear_top1": 50.0 + 3 * index * (group == "few") + seed * (1 + index),
            "knn_top1": 40.0 - 5 * index + seed,
            "curve": [[100, 20.0 + seed], [200, 30.0 + 4 * index + seed]],
            **{"images": 200, "seconds": 10.0, "epochs": 2, "images_per_second": 20.0},
        }
        for group in ("few", "usual")
        for index, arm in enumerate(arms)
        for seed in seeds
    ]
    return {
        **{"question": "Does <i>it</i> help?", "base_name": "plain", "jobs": 1, "processors": 2},
        **{"planned": 20, "study": {"question": "Does <i>it</i> help?"}, "runs": runs},
    }


def test_the_page_has_the_table_the_differences_and_links_to_runs_with_a_report(tmp_path, capsys):
    results = study()
    (tmp_path / "results.json").write_text(json.dumps(results))
    run = tmp_path / "few" / folder_name(ARM) / "seed-1"
    run.mkdir(parents=True)
    (run / "report.html").write_text("")
    report_study(tmp_path)
    assert capsys.readouterr().out == f"Report: {tmp_path / 'report.html'}\n"
    page = Page((tmp_path / "report.html").read_text())
    page.assert_complete()
    columns, rows = tabulate(results)
    assert page.cells == [columns, *rows]
    assert "Does <i>it</i> help?" in page.text
    assert not page.all("b") + page.all("i")
    assert "12 of 20 runs are finished" in page.text
    (link,) = (x["href"] for x in page.all("a") if not x["href"].startswith("#"))
    assert (tmp_path / link).samefile(run / "report.html")
    # Two forest plots, linear and kNN, and two curves.
    labels = [x["aria-label"] for x in page.all("div") if x.get("role") == "img"]
    assert len(labels) == len(page.all("svg")) == 4
    linear = [
        paired_difference(results["runs"], "linear_top1", group, ("plain", ARM)).mean
        for group in ("few", "usual")
    ]
    assert labels[0] == f"linear: few, {ARM} {linear[0]:+.2f}; usual, {ARM} {linear[1]:+.2f}."
    plain = [x for x in results["runs"] if x["group"] == "few" and x["arm"] == "plain"]
    first, last = average_curves(plain, "images").means
    assert f"plain (3 seeds) from {first:g} to {last:g}" in labels[2]


def test_a_single_seed_has_points_without_intervals_and_a_lonely_base_no_plot():
    assert len(draw_differences(study(seeds=[0]))) == 2
    assert draw_differences(study(arms=["plain"])) == []
    results = study()
    for row in results["runs"]:
        row["curve"] = []
    assert draw_curves(results) == []


def test_of_many_arms_the_base_and_the_best_are_drawn():
    rows = {f"arm {i}": [{"curve": [[1, float(i)]]}] for i in range(20)}
    chosen = choose_arms(rows, "arm 0")
    assert chosen == ["arm 0", *(f"arm {i}" for i in range(20 - MAX_ARMS + 1, 20))]


def test_a_page_that_cannot_be_written_is_one_line(tmp_path, capsys):
    report_study(tmp_path)
    assert capsys.readouterr().out == ""  # no run has finished
    (tmp_path / "results.json").write_text("{}")
    report_study(tmp_path)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'report.html'} was not written (KeyError): ")
