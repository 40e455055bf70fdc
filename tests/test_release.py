"""What a release needs: the citation, the workflows, the templates and the check of its tag."""

import re
from pathlib import Path

import pytest
import yaml

import mixco_lightly
import tests.smoke_release as smoke_release

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
VERSION = mixco_lightly.__version__
# The keys of Citation File Format 1.2.0 that a file about software may have.
CITATION_KEYS = {"cff-version", "message", "title", "type", "version", "license", "authors"}
CITATION_KEYS |= {"abstract", "keywords", "references", "date-released", "repository-code", "url"}
REFERENCE_KEYS = {"type", "title", "authors", "year", "url", "identifiers"}
PAPERS = {
    "2010.06300": "Sungnyun Kim, Gihun Lee, Sangmin Bae, Se-Young Yun",
    "2106.15499": ("Sangmin Bae, Sungnyun Kim, Jongwoo Ko, Gihun Lee, Seungjong Noh, Se-Young Yun"),
}
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text())
    for path in sorted((ROOT / ".github/workflows").glob("*.y*ml"))
}


def test_the_citation_is_of_this_version_and_has_only_keys_of_its_format():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert not citation.keys() - CITATION_KEYS
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert str(citation["version"]) == VERSION
    assert citation["license"] == re.search(r'^license = "(.+)"$', PYPROJECT, re.MULTILINE)[1]
    (author,) = citation["authors"]
    assert f'authors = [{{ name = "{author["name"]}" }}]' in PYPROJECT
    assert f"(c) 2026 {author['name']}" in (ROOT / "LICENSE").read_text()


def test_the_citation_has_both_papers_with_their_authors():
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    authors = {}
    for paper in references:
        assert paper.keys() == REFERENCE_KEYS
        number = paper["url"].removeprefix("https://arxiv.org/abs/")
        assert paper["identifiers"] == [{"type": "other", "value": f"arXiv:{number}"}]
        assert paper["year"] == 2000 + int(number[:2])
        names = [f"{person['given-names']} {person['family-names']}" for person in paper["authors"]]
        authors[number] = ", ".join(names)
    assert authors == PAPERS


def test_the_changelog_starts_with_what_is_unreleased_or_with_this_version():
    heading = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    released = rf"\[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d"
    assert heading == "[Unreleased]" or re.fullmatch(released, heading)


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A folder whose tag v1.2.3 can be published."""
    (tmp_path / "mixco_lightly").mkdir()
    (tmp_path / "mixco_lightly/__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.3] - 2026-01-01\n")
    text = '[project.urls]\nRepository = "https://host/a/b"\n'
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(smoke_release, "ROOT", tmp_path)
    return tmp_path


def test_a_tag_is_published_if_version_changelog_and_repository_agree(release, capsys):
    smoke_release.check_tag("v1.2.3", "https://host/a/b")
    assert capsys.readouterr().out == "v1.2.3 can be published.\n"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("mixco_lightly/__init__.py", '__version__ = "1.2.4"\n', "tag is v1.2.3, .* is 1.2.4"),
        ("CHANGELOG.md", "\n## [Unreleased]\n", r"no heading '## \[1.2.3\] - DATE'"),
        ("pyproject.toml", "", 'no Repository = "https://host/a/b"'),
    ],
)
def test_a_tag_is_refused_if_one_of_them_differs(file, text, message, release):
    (release / file).write_text(text)
    with pytest.raises(SystemExit, match=message):
        smoke_release.check_tag("v1.2.3", "https://host/a/b")


def steps_of(workflow):
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read_but_for_jobs_with_an_environment(name):
    workflow = WORKFLOWS[name]
    assert "permissions" in workflow
    for job in [workflow, *workflow["jobs"].values()]:
        rights = job.get("permissions", {})
        assert isinstance(rights, dict)  # not write-all
        if "environment" not in job:
            assert "write" not in rights.values()
    # What is checked out may come from anybody: nothing of the event goes into a shell's text.
    assert not [x["run"] for x in steps_of(name) if "${{ github." in x.get("run", "")]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_actions_of_a_workflow_are_pinned_to_commits_and_its_files_and_targets_are_there(name):
    used = [step["uses"] for step in steps_of(name) if "uses" in step]
    assert used
    # A commit cannot be moved, and the comment is what Dependabot reads and renews.
    text = (ROOT / ".github/workflows" / name).read_text()
    assert len(re.findall(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", text, re.M)) == len(used)
    commands = "\n".join(step.get("run", "") for step in steps_of(name))
    assert all((ROOT / path).is_file() for path in re.findall(r"(?:tests|\.ci)/[\w/.]+", commands))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make ([a-z-]+)", commands, re.MULTILINE)) <= set(targets)


def test_only_a_tag_publishes_and_only_after_both_files_ran_on_the_lowest_and_newest_python():
    workflow = WORKFLOWS["publish.yml"]
    # YAML reads the key "on" as true.
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert workflow["permissions"] == {}
    jobs = workflow["jobs"]
    rights = {name: job["permissions"] for name, job in jobs.items() if "publish" not in name}
    assert rights == {"build": {"contents": "read"}, "smoke": {"contents": "read"}}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "pypi"
    assert (jobs["publish"]["needs"], jobs["smoke"]["needs"]) == ("smoke", "build")
    publishing = [x for x in steps_of("publish.yml") if "pypi-publish" in x.get("uses", "")]
    assert publishing == [jobs["publish"]["steps"][-1]]
    assert not publishing[0].keys() - {"uses"}  # no password
    # Code of the repository does not run where the right to publish is.
    assert not [x for x in jobs["publish"]["steps"] if "run" in x or "checkout" in x["uses"]]
    matrix = jobs["smoke"]["strategy"]["matrix"]
    pythons = re.findall(r"Python :: (3\.\d+)", PYPROJECT)
    assert matrix["python"] == [pythons[0], pythons[-1]]
    assert f'requires-python = ">={pythons[0]}"' in PYPROJECT
    assert matrix["distribution"] == ["*.whl", "*.tar.gz"]
    assert "smoke_release.py tag " in "".join(x.get("run", "") for x in jobs["build"]["steps"])
    assert "smoke_release.py run" in jobs["smoke"]["steps"][-1]["run"]


def test_lightlys_main_branch_is_tried_weekly_and_by_no_pull_request():
    workflow = WORKFLOWS["lightly-main.yml"]
    assert set(workflow[True]) == {"schedule", "workflow_dispatch"}
    (time,) = workflow[True]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", time["cron"])
    commands = [step.get("run", "") for step in steps_of("lightly-main.yml")]
    assert any("git+https://github.com/lightly-ai/lightly" in command for command in commands)
    assert any("tests/test_lightly.py" in command for command in commands)


def test_issue_templates_have_a_name_and_say_what_they_are_for():
    templates = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md"))
    assert len(templates) == 2
    for path in templates:
        head = yaml.safe_load(path.read_text().split("---\n")[1])
        assert head.keys() == {"name", "about", "labels"}
    assert (ROOT / ".github/pull_request_template.md").is_file()
