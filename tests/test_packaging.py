"""What holds for the whole repository: what is in a wheel, what is imported when, what is never loaded."""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

PACKAGES = ("data", "encoders", "elm", "eval", "serve", "recipes")
# vLLM itself imports these, by name, after the plugin's __init__.py has registered them: they subclass its classes.
IMPORTED_BY_VLLM = "serve/vllm_plugin/"
# Nothing but Gradio's wiring: `serve.app` imports these once it knows that Gradio is there.
PAGE = {f"serve/page/{name}.py" for name in ("build", "place", "talk")}

MODULES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(node: ast.AST) -> list[str]:
    """Absolute names of the modules that one statement or call imports; `import_module("x")` counts too."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module]
        case ast.Call(
            func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(module)), *_],
        ) if not module.startswith("."):
            return [module]
    return []


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every import, wherever it stands."""
    for node in ast.walk(tree):
        for module in imported(node):
            yield node.lineno, module


def imports_on_load(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of the imports that run when the module loads: not those in functions or for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for alternative in child.orelse:
                yield from imports_on_load(ast.Module([alternative], []))
            continue
        for module in imported(child):
            yield child.lineno, module
        yield from imports_on_load(child)


@cache
def plain_install() -> frozenset[str]:
    """Canonical names of the distributions that `pip install -e .` brings, without any extra of ours."""
    brought: set[str] = set()
    waiting = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        brought.add(key[0])
        try:
            lines = requires(requirement.name) or []
        except PackageNotFoundError:  # for another platform
            continue
        for needed in map(Requirement, lines):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *key[1])):
                waiting.append(needed)
    return frozenset(brought)


def fails(path: Path, line: int, what: str) -> str:
    return f"{name_of(path)}:{line}: {what}"


def test_the_scan_sees_every_package_and_every_kind_of_import() -> None:
    assert {name_of(path).partition("/")[0] for path in MODULES} == set(PACKAGES)
    tree = ast.parse(
        "import a.b\nfrom c import d\nfrom . import e\n"
        "if TYPE_CHECKING:\n    import f\nelse:\n    import g\n"
        "try:\n    import h\nexcept ImportError:\n    pass\n"
        "class C:\n    import i\n    def method(self):\n        import j\n        importlib.import_module('k.l')\n"
    )
    assert sorted(name for _, name in imports(tree)) == ["a.b", "c", "f", "g", "h", "i", "j", "k.l"]
    assert sorted(name for _, name in imports_on_load(tree)) == ["a.b", "c", "g", "h", "i"]


@pytest.mark.slow
def test_loading_a_module_needs_no_extra() -> None:
    # Otherwise an optional package that is absent, or broken on this machine, would take the default recipe with it.
    distributions = packages_distributions()
    allowed = {*sys.stdlib_module_names, *PACKAGES}
    wrong = []
    for path in MODULES:
        for line, module in imports_on_load(parsed(path)):
            top = module.partition(".")[0]
            by_vllm = name_of(path).startswith(IMPORTED_BY_VLLM) and path.name != "__init__.py"
            if top in allowed or (top == "vllm" and by_vllm) or (top == "gradio" and name_of(path) in PAGE):
                continue
            if not plain_install().intersection(map(canonicalize_name, distributions.get(top, []))):
                wrong.append(fails(path, line, f"{module} is not in a plain install: import it where it is used"))
    assert not wrong, "\n".join(wrong)


def test_a_plain_install_holds_no_optional_package() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    optional = {canonicalize_name(Requirement(line).name) for name in extras if name != "dev" for line in extras[name]}
    assert {"flash-attn", "bitsandbytes", "vllm", "gradio"} <= optional
    assert optional & plain_install() <= {"torch"}
    development = {canonicalize_name(Requirement(line).name) for line in extras["dev"]}
    assert not development & optional


def test_every_package_is_in_the_wheel() -> None:
    found = PYPROJECT["tool"]["setuptools"]["packages"]["find"]
    assert found["namespaces"] is False
    packages = {package.replace(".", "/") for package in find_packages(str(ROOT), include=found["include"])}
    assert packages == {name_of(path.parent) for path in MODULES}
    assert set(PACKAGES) <= packages


def test_every_data_file_is_in_the_wheel() -> None:
    shipped: set[Path] = set()
    declared = PYPROJECT["tool"]["setuptools"]["package-data"]
    for folder in {path.parent for path in MODULES}:
        for pattern in (*declared["*"], *declared.get(name_of(folder).replace("/", "."), [])):
            shipped |= set(folder.glob(pattern))
    present = {
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md") and not path.name.startswith(".")
    }
    assert not present - shipped, f"not in [tool.setuptools.package-data]: {sorted(map(name_of, present - shipped))}"


def test_a_recipe_run_as_a_script_hides_no_library() -> None:
    # `accelerate launch recipes/x.py` puts recipes/ first on the path: a file there may not have a library's name, and
    # recipes/accelerate/ may not become a package.
    assert not [name_of(path) for path in (ROOT / "recipes").glob("*/__init__.py")]
    taken = {*sys.stdlib_module_names, *PACKAGES, *packages_distributions()} - {"__init__"}
    assert not taken.intersection(path.stem for path in (ROOT / "recipes").glob("*.py"))


def test_public_modules_say_what_they_are() -> None:
    silent = [
        name_of(path)
        for path in MODULES
        if parsed(path).body  # an empty __init__.py has nothing to say
        and (path.name == "__init__.py" or not path.name.startswith("_"))
        and not ast.get_docstring(parsed(path))
    ]
    assert not silent


FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"read_pickle", "unsafe_load", "full_load"}
# Where one of these is given at all, it must be this constant.
REQUIRED_CONSTANTS = {"allow_pickle": False, "trust_remote_code": False, "weights_only": True}


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of whatever could run code that came in a file."""
    for line, module in imports(tree):
        if module.partition(".")[0] in FORBIDDEN_MODULES:
            yield line, module
    for node in ast.walk(tree):
        given: list[tuple[str | None, ast.expr]] = []
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg for keyword in node.keywords}
            given = [(keyword.arg, keyword.value) for keyword in node.keywords]
            if called.rpartition(".")[2] in FORBIDDEN_CALLS:
                yield node.lineno, called
            if called == "torch.load" and "weights_only" not in keywords:
                yield node.lineno, "torch.load without weights_only=True"
            if called == "yaml.load":
                yield node.lineno, "yaml.load instead of yaml.safe_load"
        elif isinstance(node, ast.Dict):
            given = [
                (key.value, value)
                for key, value in zip(node.keys, node.values)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
        for name, value in given:
            if name in REQUIRED_CONSTANTS and not (
                isinstance(value, ast.Constant) and value.value is REQUIRED_CONSTANTS[name]
            ):
                yield value.lineno, f"{name}={ast.unparse(value)}"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    from pickle import loads",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=flag)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "kwargs = {'trust_remote_code': True}",
        "pd.read_pickle(p)",
        "yaml.load(f)",
    ],
)
def test_the_scan_finds_unsafe_loading(code: str) -> None:
    assert len(list(unsafe(ast.parse(code)))) == 1


def test_nothing_loads_pickles_or_remote_code() -> None:
    harmless = "np.load(p, allow_pickle=False)\ntorch.load(p, weights_only=True)\nyaml.safe_load(f)\njson.load(f)"
    assert not list(unsafe(ast.parse(harmless)))
    found = [fails(path, line, what) for path in MODULES for line, what in unsafe(parsed(path))]
    assert not found, "\n".join(found)


def test_one_module_takes_pickles_apart() -> None:
    # It carries out a few of their instructions itself (tests/data/test_pickles.py); a second one would escape notice.
    readers = {name_of(path) for path in MODULES for _, module in imports(parsed(path)) if module == "pickletools"}
    assert readers == {"data/support/pickles.py"}


def test_settings_in_recipes_parse() -> None:
    files = sorted((ROOT / "recipes").glob("*/*.y*ml"))
    assert any(path.parent.name == "configs" for path in files)
    for path in files:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(settings, dict), f"{name_of(path)} is not a mapping"
        assert not settings.get("trust_remote_code"), name_of(path)


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "pyproject.toml"),
        *("Makefile", ".gitignore", ".pre-commit-config.yaml", ".ci/run", ".github/workflows/ci.yml"),
    ],
)
def test_repository_has(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.strip() and text.endswith("\n")
    if name.endswith((".yml", ".yaml", ".cff")):
        assert isinstance(yaml.safe_load(text), dict)


def test_ci_can_be_started() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md"])
def test_says_that_it_is_for_research_only(name: str) -> None:
    words = re.sub(r"[\s*_]+", " ", (ROOT / name).read_text(encoding="utf-8")).lower()
    assert "research use only" in words
    assert "not a medical device" in words


def test_the_version_is_the_same_everywhere() -> None:
    version = PYPROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["license"] == PYPROJECT["project"]["license"] == "MIT"
