"""What is installed is what was tested: the wheel works alone, and the sdist builds the same one."""

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_SOURCE = (".git", ".venv*", "site", "runs", "dist", "build", ".*cache", ".mypy*", ".hypothesis", "__pycache__")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with `sdist`, the wheel built from the sources, and `again`, the one built from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    run(*build, folder / "wheel", "--wheel", source, cwd=folder)
    run(*build, folder / "again", source, cwd=folder)  # the wheel of this is built from the sdist
    return folder


def test_the_sdist_builds_the_same_wheel(built):
    (first,), (again,) = (built / "wheel").glob("*.whl"), (built / "again").glob("*.whl")
    assert list((built / "again").glob("*.tar.gz"))
    assert contents(first) == contents(again)


def test_the_wheel_has_the_models_and_nothing_but_the_package(built):
    (wheel,) = (built / "wheel").glob("*.whl")
    names = set(contents(wheel))
    for model in ("phantom-csr", "phantom-cbm"):
        for file in ("config.json", "model.safetensors", "README.md"):
            assert f"conceptcam/hub/bundled/{model}/{file}" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"conceptcam"}
    assert {"conceptcam/py.typed", "conceptcam/hub/card.md.jinja", "conceptcam/analysis/inspection.html.jinja"} <= names


@pytest.fixture(scope="module")
def python(built) -> Path:
    """The Python of an environment that has the wheel, and what it depends on, but not the source tree."""
    run(sys.executable, "-m", "venv", "--without-pip", built / "env", cwd=built)
    python = built / "env" / "bin" / "python"
    (wheel,) = (built / "wheel").glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=built)
    (packages,) = (built / "env").glob("lib/python*/site-packages")
    # A plain line adds a folder to the path and does not follow its editable installs.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_an_installed_wheel_runs_the_readmes_first_example(built, python):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    printed = run(python, "-c", f"{code[1]}\nimport conceptcam\nprint(conceptcam.__file__)", cwd=built / "env")
    assert printed.splitlines()[-1].startswith(str(built / "env"))
    assert "p = " in printed


def test_an_installed_wheel_verifies_its_models(built, python):
    code = "from conceptcam.cli.main import main; main(['verify', 'phantom-csr']); main(['verify', 'phantom-cbm'])"
    assert run(python, "-c", code, cwd=built / "env").count(": whole; all ") == 2
