"""The wheel holds every file of the tree, installs alone, and each of its modules imports.

What an editable install finds in the checkout says nothing of what a cluster job gets.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
ROOMS = ("schemas", "pipeline", "model", "train", "jobs")


def run(*command: object, cwd: Path) -> str:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(tree: Path, out: Path) -> Path:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", "wheel", *options, tree, cwd=tree)
    (wheel,) = out.glob("*.whl")
    return wheel


def files_of_tree() -> set[str]:
    found = {"tap_engine/__init__.py"}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and path.parent.name != "__pycache__":
                found.add(f"tap_engine/{path.relative_to(ROOT).as_posix()}")
    return found


def files_of_wheel(wheel: Path) -> set[str]:
    names = set(zipfile.ZipFile(wheel).namelist())
    return {name for name in names if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what a package is built from: building leaves files behind."""
    copy = tmp_path_factory.mktemp("tree") / "tap-engine"
    for name in ("src", *ROOMS):
        ignored = shutil.ignore_patterns("*.egg-info")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory) -> Path:
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory) -> Path:
    """Commands of an environment with the wheel; libraries come from the tests' environment."""
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    # A line of a .pth file adds a folder without reading the .pth files in it, and so without the
    # editable install of the checkout.
    (site,) = (folder / "lib").glob("python*/site-packages")
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
    return folder / "bin"


def test_rooms_are_linked_under_the_import_name() -> None:
    links = {path.name: path for path in (ROOT / "src" / "tap_engine").iterdir() if path.is_dir()}
    links.pop("__pycache__", None)
    assert set(links) == set(ROOMS)
    for name, link in links.items():
        assert link.is_symlink(), (
            f"{link} must be a link to the folder {name}; on Windows clone with "
            "`git clone -c core.symlinks=true`"
        )
        assert link.resolve() == ROOT / name


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    assert files_of_wheel(wheel) == files_of_tree()


def test_a_wheel_built_from_the_sdist_holds_the_same(tree: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=tree)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        assert not [member.name for member in tar if member.issym()], "a link may lead nowhere"
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert files_of_wheel(build_wheel(unpacked, tmp_path / "wheel")) == files_of_tree()


def test_every_module_imports_from_the_wheel_alone(bare: Path) -> None:
    code = """
import importlib, pkgutil, tap_engine
names = ["tap_engine"]
names += [module.name for module in pkgutil.walk_packages(tap_engine.__path__, "tap_engine.")]
for name in names:
    print(name, importlib.import_module(name).__file__)
"""
    lines = run(bare / "python", "-c", code, cwd=bare).splitlines()
    found = dict(line.split(" ", 1) for line in lines if line.startswith("tap_engine"))
    expected = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files_of_tree()
        if name.endswith(".py")
    }
    assert set(found) == expected
    assert all(Path(path).is_relative_to(bare.parent) for path in found.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_start_from_the_wheel_alone(bare: Path, command: str) -> None:
    assert f"Usage: {command}" in run(bare / command, "--help", cwd=bare)
