"""The README and the pages are true: their code runs, their commands parse, their names and files exist."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import conceptcam
from conceptcam import ConceptConfig, ConceptModel, get_preset, list_presets
from conceptcam.cli.main import COMMANDS as COMMAND_NAMES, build_parser
from conceptcam.runs.demo import demo_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
}

_spec = importlib.util.spec_from_file_location("api_index", ROOT / "docs" / "api_index.py")
api_index = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(api_index)
API = {name: text for name, text in PAGES.items() if name.startswith("docs/api/")}


def shell_lines(text: str) -> list[str]:
    """What stands in the text's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()  # a backslash joins a line to the next
    return [line for line in lines if line.strip()]


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """An empty folder to run a page in, in which `make demo` seems to have been."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONCEPTCAM_CACHE", str(tmp_path / "feature_cache"))
    model = ConceptModel.from_config(demo_config(112))
    model.record = model.record.after("concepts", ["backbone", "concept_head"])
    model.record = model.record.after("prototypes", ["projector", "prototypes"]).after("task", ["task_head"])
    model.save_pretrained(tmp_path / "runs" / "demo-20260101-120000")
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield tmp_path
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "```python" in text])
def test_code_of_a_page_runs(name, workshop):
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(ROOT)).parse(ROOT / name)
    examples = list(document.examples())
    assert len(examples) == PAGES[name].count("```python"), "a block is marked so that it is not run"
    for example in examples:
        example.evaluate()


COMMANDS = [
    (name, line) for name, text in PAGES.items() for line in shell_lines(text) if line.startswith("conceptcam ")
]


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_a_command_on_a_page_is_one_that_the_command_line_takes(name, line):
    parser = build_parser()
    assert parser.parse_args(shlex.split(line, comments=True)[1:]).run


def test_every_command_has_its_section():
    text = PAGES["docs/cli.md"]
    for command in COMMAND_NAMES:
        assert f"\n## {command}\n" in text


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_and_files_named_on_a_page_exist(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(" ".join(re.findall(r"^([a-z][\w. -]*):", makefile, flags=re.MULTILINE)).split())
    text = PAGES[name]
    assert set(re.findall(r"`make ([a-z][\w.-]*)", text)) <= targets
    assert {line.split()[1] for line in shell_lines(text) if line.startswith("make ")} <= targets
    for file in re.findall(r"\b(?:examples|benchmarks)/\w+\.py", text):
        assert (ROOT / file).is_file(), file


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_every_page_is_linked_from_the_front_page():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([\w-]+\.md)\)", PAGES["docs/index.md"]))


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/quickstart.md"])
def test_a_page_about_stages_names_every_row_that_logs_show(name):
    config = ConceptConfig(concepts=("a",), tasks=("b",), backbone="small_cnn_s8")
    rows = {stage.name for stage in get_preset("recommended").stages(config)} - {"concepts", "task"}
    assert rows == {"embedding", "prototypes"} and all(f"`{row}`" in PAGES[name] for row in rows)


def test_the_readme_opens_with_both_commands_and_ten_lines():
    screen = "\n".join(README.splitlines()[:30])
    assert {line.split("#")[0].strip() for line in shell_lines(screen)} == {"make demo", "make test"}
    (code,) = re.findall(r"^```python\n(.*?)^```", screen, flags=re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 12


def test_readme_opens_with_a_picture_and_has_no_badges():
    assert re.findall(r"!\[.*?\]\((.*?)\)", README) == ["docs/images/explanation.png"]
    assert "docs/images/explanation.png" in "".join(README.splitlines()[:5]) and "<img" not in README


@pytest.mark.parametrize("name", ["demo", "speed", "zoo"])
def test_readme_has_a_place_for_measured_figures(name):
    block = re.search(rf"<!-- figures:{name} -->(.*)<!-- /figures:{name} -->", README, flags=re.DOTALL)
    assert block is not None
    assert re.search(r"`(make demo|python benchmarks/\w+\.py[^`]*)`", block[1]), "which command printed the figures?"
    assert re.search(r"\d\.?\d", block[1]), "there are no figures"


FIGURES = [
    (name, block, text)
    for name, page in PAGES.items()
    for block, text in re.findall(r"<!-- figures:(\w+) -->(.*?)<!-- /figures:\1 -->", page, flags=re.DOTALL)
]


@pytest.mark.parametrize(("name", "block", "text"), FIGURES, ids=[f"{name}-{block}" for name, block, _ in FIGURES])
def test_figures_name_their_command_and_are_filled_in(name, block, text):
    assert re.search(r"`(make demo|python benchmarks/\w+\.py[^`]*)`", text), "which command printed the figures?"
    cells = [cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")]
    assert re.search(r"\d\.?\d", text) and not {"0", "?", "TODO"} & set(cells)


def test_index_of_the_api_is_what_the_code_says():
    expected = api_index.index_page()
    assert expected == API["docs/api/index.md"], "say `python docs/api_index.py` to write it anew"


def test_every_room_has_a_page_in_the_menu():
    menu = re.findall(r"^      - [\w.]+: api/(\w+)\.md$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert tuple(menu) == api_index.PAGES
    assert {f"docs/api/{page}.md" for page in menu} | {"docs/api/index.md"} == set(API)
    rooms = {path.parent.name for path in (ROOT / "conceptcam").glob("[a-z]*/__init__.py")} - {"cli"}
    assert rooms <= set(menu)


@pytest.mark.parametrize("name", [name for name in conceptcam.__all__ if name != "__version__"])
def test_a_public_name_is_in_the_index(name):
    assert f"\n| [`{name}`][" in API["docs/api/index.md"]


PUBLIC = {
    page: set(getattr(importlib.import_module(f"conceptcam.{api_index.room_name(page)}"), "__all__", ()))
    | {name for name in api_index.public_names(page) if name in conceptcam.__all__}
    for page in api_index.PAGES
}


@pytest.mark.parametrize("page", PUBLIC)
def test_a_public_name_has_an_example_on_its_page(page):
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```", API[f"docs/api/{page}.md"], re.MULTILINE | re.DOTALL))
    assert {name for name in PUBLIC[page] if not re.search(rf"\b{name}\b", examples)} == set()


@pytest.mark.parametrize("name", list_presets())
def test_table_of_presets_says_what_the_preset_does(name):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_of_presets()]
    column = rows[0].index(f"`{name}`")
    said = {row[0]: row[column] for row in rows[2:]}
    chosen = get_preset(name)
    config = chosen.apply_to(ConceptConfig(concepts=("a",), tasks=("b",), backbone="small_cnn_s8"))
    for field in ("pooling", "head_bias", "projector", "embed_dim", "prototypes_per_concept"):
        assert said[field] == str(getattr(config, field))
    scratch = chosen.stages(config)
    tuned = chosen.stages(config, backbone_pretrained=True)
    concepts, *second, task = scratch
    assert float(said["lr backbone, from scratch"]) == concepts.lr["backbone"]
    assert float(said["lr backbone, pretrained"]) == tuned[0].lr["backbone"]
    assert float(said["lr concept_head"]) == concepts.lr["concept_head"]
    assert {stage.lr["projector"] for stage in second} == {float(said["lr prototypes"])} == {second[0].lr["prototypes"]}
    assert float(said["lr task_head"]) == task.lr["task_head"]
    assert {said["schedule"]} == {stage.schedule for stage in scratch}
    assert said["epochs"] == " + ".join(str(stage.epochs) for stage in scratch)


def table_of_presets() -> list[str]:
    lines = PAGES["docs/science.md"].split("## The presets")[1].split("##")[0].splitlines()
    return [line for line in lines if line.startswith("|")]


def test_changelog_and_citation_name_the_version():
    released = re.findall(r"^## \[(\d.*?)\]", PAGES["CHANGELOG.md"], re.MULTILINE)
    if "dev" in conceptcam.__version__:  # what is not released yet
        assert (
            "\n## [Unreleased]\n" in PAGES["CHANGELOG.md"] and conceptcam.__version__.split(".dev")[0] not in released
        )
    else:
        assert conceptcam.__version__ == released[0]
    assert f"\nversion: {released[0]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
