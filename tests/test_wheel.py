"""The built wheel holds every file, and installed packages win over folders of the same name.

The packages have common names, and people keep recordings in a folder called data. What can be promised and what not:

1. A plain ./data folder, without __init__.py, never hides the installed package, not even where Python puts the working
   directory first on the path (-c, -m). This fails when an editable install goes through an import hook instead of the
   path, which is what setuptools does without package-dir in pyproject.toml.
2. A ./data with an __init__.py of its own does not matter to a script that is run by its path, directly or by
   accelerate, nor to `python -P`, since the working directory is then not on the path. This fails when a package is
   missing from the installation, or when something puts the working directory on the path.
3. Under a bare -c or -m such a ./data package wins, whatever an installation does. That is Python's rule; it is checked
   too, because otherwise 2 would prove nothing.
"""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from helpers.processes import REPO

pytestmark = pytest.mark.slow
PACKAGES = ("data", "encoders", "elm", "eval", "serve", "recipes")
WHERE = '''"""where.py ROOT find|import PACKAGE...: the packages are found in ROOT, or they and their subpackages import from it."""
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

root, how, *names = sys.argv[1:]
if how == "import":
    for name in names:  # grows while it is walked
        module = importlib.import_module(name)
        names += [item.name for item in pkgutil.iter_modules(module.__path__, f"{name}.") if item.ispkg]
for name in names:
    spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    wanted = Path(root, *name.split("."), "__init__.py").resolve()
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != wanted:
        sys.exit(f"{name} comes from {spec and (spec.origin or list(spec.submodule_search_locations))}, not from {wanted}")
'''  # noqa: E501


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the packages, so that nothing an earlier build left behind gets in and nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel") / "source"
    for package in PACKAGES:
        shutil.copytree(REPO / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source):
    out = source.with_name("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    shutil.rmtree(source / "build")
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_and_no_other(wheel, source):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(source).as_posix()
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and path.suffix != ".md" and not path.name.startswith(".")
    }
    assert wanted - inside == set()
    assert {name for name in inside - wanted if not name.endswith(".md")} == set()


@pytest.fixture(scope="module", params=["editable", "wheel"])
def installed(request, tmp_path_factory):
    """An interpreter, and where it should find the packages.

    The wheel gets an environment of its own that sees the libraries of this one, but not its editable install: a .pth
    file inside a folder that was itself added by a .pth file is not read.
    """
    if request.param == "editable":
        return sys.executable, REPO
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)}))
    wheel, python = request.getfixturevalue("wheel"), folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    (site / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return str(python), site


@pytest.fixture
def look(installed, tmp_path):
    """`look(folder, *words)`: run the interpreter with `words` in `folder`, without what this process was told."""
    python, root = installed

    def run(folder, *words):
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [python, *map(str, words)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)

    return run, root


def test_installed_packages_win_over_plain_folders(look, tmp_path):
    run, root = look
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "recording.dat").touch()
    ended = run(tmp_path, "-c", WHERE, root, "find", *PACKAGES)
    assert ended.returncode == 0, ended.stderr


def test_a_package_called_data_wins_only_under_bare_c_and_m(look, tmp_path):
    run, root = look
    decoy, script = tmp_path / "decoy", tmp_path / "scripts" / "where.py"
    for folder in (decoy / "data", script.parent):
        folder.mkdir(parents=True)
    script.write_text(WHERE)
    (decoy / "data" / "__init__.py").write_text('raise RuntimeError("the data package of the working directory")\n')
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines", 1]
    launch += ["--num_cpu_threads_per_process", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    for words in (
        ["-P", "-c", WHERE, root, "find"], [*launch, script, root, "find"], [script, root, "import"]
    ):  # fmt: skip
        ended = run(decoy, *words, *PACKAGES)
        assert ended.returncode == 0, ended.stderr
    ended = run(decoy, "-c", "import data")
    assert ended.returncode and "the data package of the working directory" in ended.stderr
