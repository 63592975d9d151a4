"""What is released says the same as the package: version, files, licence."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

import ddcm_fast

ROOT = Path(__file__).resolve().parents[1]
CARDS = sorted(ROOT.glob("ddcm_fast/models/weights/*/README.md"))


def test_the_recipe_has_the_packages_version_and_requirements() -> None:
    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == ddcm_fast.__version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r'"([\w.>=-]+)"', re.search(r"^dependencies = \[(.*?)\]", project, re.M | re.S)[1])
    names = {"torch": "pytorch", "diffusers": "diffusers-base"}
    wanted = {f"{names.get(name, name)} >={least}" for name, least in (one.split(">=") for one in needed)}
    assert wanted == {one for one in recipe["requirements"]["run"] if not one.startswith("python ")}


def test_the_version_is_written_once() -> None:
    assert 'dynamic = ["version", ' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_citation_can_be_read() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Ohayon", "Manor", "Michaeli", "Elad"]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_a_models_card_has_the_hubs_metadata(card: Path) -> None:
    _, front, text = card.read_text(encoding="utf-8").split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["license"] == "apache-2.0" and "## Training" in text and "## Limits" in text
    (index,) = said["model-index"]
    assert index["name"] == card.parent.name
    for result in index["results"]:
        assert {"task", "dataset", "metrics"} <= result.keys()
        assert all(isinstance(metric["value"], float) for metric in result["metrics"])


def test_every_model_with_weights_has_a_card() -> None:
    assert [card.parent for card in CARDS] == sorted((ROOT / "ddcm_fast" / "models" / "weights").iterdir())


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_asks_for_extras_that_exist(name: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", project, re.M | re.S)[1].split())
    asked = re.findall(r"\[([a-z,]+)\]", (ROOT / "packaging" / name).read_text(encoding="utf-8"))
    assert asked and all(extra in extras for group in asked for extra in group.split(","))


def test_an_indexs_page_names_no_file_beside_it(tmp_path: Path) -> None:
    index_page = runpy.run_path(str(ROOT / "packaging" / "index_page.py"))["index_page"]
    page = index_page(ROOT / "README.md")
    assert re.findall(r"\]\((?!https?://)", page) == []
    assert "(https://arxiv.org/abs/2502.01189)" in page and "pip install ddcm-fast" in page and "![" not in page
    (tmp_path / "README.md").write_text("![a\nb](docs/a.png)\n\n[here\nis](x.md#y) and [there](https://a.org/b)\n")
    assert index_page(tmp_path / "README.md") == "here\nis and [there](https://a.org/b)\n"


def test_a_wheel_brings_the_type_for_desktops_and_file() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert sorted(re.findall(r'"(share/ddcm\.\w+)"', setup)) == ["share/ddcm.magic", "share/ddcm.xml"]
    assert all((ROOT / "share" / name).is_file() for name in ("ddcm.magic", "ddcm.xml"))
