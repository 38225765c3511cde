"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINTERS = {"black", "isort", "autoflake"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins(text: str) -> dict[str, str]:
    """name==version, of the linters."""
    return {k: v for k, v in re.findall(r"(\w+)==([\w.]+)", text) if k in LINTERS}


def test_hooks_and_dev_group_pin_the_same_linters():
    dev = pins(
        " ".join(tomllib.loads(read("pyproject.toml"))["dependency-groups"]["dev"])
    )
    assert dev.keys() == LINTERS
    assert pins(read(".pre-commit-config.yaml")) == dev


def test_ci_runs_the_test_command_of_the_readme():
    command = re.search(r"^uv run pytest .*$", read("README.md"), re.MULTILINE)
    assert command and f"    {command[0]}\n" in read(".ci/run")


def test_version_is_written_alike():
    import mlx_video

    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert project["version"] == mlx_video.__version__
    assert f"## [{mlx_video.__version__}]" in read("CHANGELOG.md")


def test_lock_is_free_of_torch():
    names = {package["name"] for package in tomllib.loads(read("uv.lock"))["package"]}
    assert not names & {"torch", "diffusers"}
    assert {"mlx-cpu", "mlx-metal", "ngsolve-openblas", "cmeel-openblas"} <= names


def test_badges_are_true():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    badges = dict(re.findall(r"!\[(\w+): ([^]]+)\]\(https://img.shields.io/badge/", read("README.md")))  # fmt: skip
    assert badges["Licence"] == project["license"]
    assert (
        badges["Python"] == f"{project['requires-python'].removeprefix('>=')} or newer"
    )
