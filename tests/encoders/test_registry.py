"""Encoder types of other packages: registered by their modules, refused where two claim one, named where broken."""

import importlib
import logging
import subprocess
import sys

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from elm import ElmConfig
from encoders import load_encoder, new_encoder, registry, save_encoder
from encoders.base import EcgFeatureExtractor
from encoders.melp import MelpModel
from encoders.patch import PatchConfig, PatchEncoder, PatchFeatureExtractor
from encoders.registry import config_class, find_config, register, register_installed

TYPE = """
from encoders.base import *
from encoders.patch import PatchConfig, PatchEncoder, PatchFeatureExtractor
from encoders.registry import register

class {name}Config(PatchConfig):
    model_type = "{type}"

class {name}Encoder(PatchEncoder):
    config_class = {name}Config

class {name}Extractor(PatchFeatureExtractor):
    pass

register({name}Encoder, {name}Extractor)
"""


@pytest.fixture
def provide(tmp_path, monkeypatch):
    """Install a package of one module that declares an encoder type, as pip would leave it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = []

    def install(package, code, type):
        packages.append(package)
        (tmp_path / f"{package}.py").write_text(code)
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[ecg_elm.encoders]\n{type} = {package}\n")

    yield install
    for package in packages:
        sys.modules.pop(package, None)


def test_an_installed_type_is_registered_made_saved_and_loaded(provide, tmp_path, caplog):
    provide("good_pkg", TYPE.format(name="Good", type="ecg_good"), "ecg_good")
    register_installed({"ecg_patch"})
    assert not caplog.records and "ecg_good" in CONFIG_MAPPING
    torch.manual_seed(0)
    encoder, extractor = new_encoder("ecg_good", hidden_size=8, scale=0.25)
    assert type(encoder).__name__ == "GoodEncoder" and extractor.scale == 0.25 and not encoder.training
    save_encoder(encoder, extractor, tmp_path / "saved")
    for loaded in (load_encoder(tmp_path / "saved")[0], AutoModel.from_pretrained(tmp_path / "saved")):
        assert type(loaded) is type(encoder) and torch.equal(loaded.patch.weight, encoder.patch.weight)
    with pytest.raises(ValueError, match="unknown setting scael: ecg_good has .*scale"):
        new_encoder("ecg_good", scael=1)


def test_a_type_is_also_found_when_it_is_first_asked_for(provide):
    provide("late_pkg", TYPE.format(name="Late", type="ecg_late"), "ecg_late")
    assert config_class("ecg_late").model_type == "ecg_late"


@pytest.mark.parametrize(
    ("package", "code", "message"),
    [
        ("broken_a", "raise RuntimeError('half installed')", "broken_a 1.2 .* fails with RuntimeError: half installed"),
        ("broken_b", "import no_such_library", "fails with ModuleNotFoundError: .*no_such_library"),
        ("broken_c", "x = 1", "broken_c was imported and registered no encoder of that model_type; it must call"),
        ("broken_d", TYPE.format(name="D", type="ecg_elsewhere_d"), "broken_d was imported and registered no encoder"),
        ("broken_e", TYPE.format(name="E", type="ecg_patch"), "fails with ValueError: .*'ecg_patch' is taken"),
    ],
)
def test_a_broken_type_is_a_warning_until_it_is_asked_for(provide, caplog, tmp_path, package, code, message):
    provide(package, code, f"ecg_{package}")
    with caplog.at_level(logging.WARNING, "encoders.registry"):
        register_installed(set())
    (record,) = caplog.records
    assert record.levelname == "WARNING" and f"encoder type 'ecg_{package}'" in record.getMessage()
    assert new_encoder("ecg_patch")  # nothing else suffers
    for ask in (
        lambda: new_encoder(f"ecg_{package}"),
        lambda: find_config(f"ecg_{package}"),
        lambda: ElmConfig(encoder_config={"model_type": f"ecg_{package}"}),
        lambda: load_encoder(tmp_path / "saved"),
    ):
        (tmp_path / "saved").mkdir(exist_ok=True)
        (tmp_path / "saved" / "config.json").write_text(f'{{"model_type": "ecg_{package}"}}')
        with pytest.raises(ImportError, match=message):
            ask()


def test_a_type_that_two_packages_provide_is_refused(provide, caplog):
    provide("twice_a", TYPE.format(name="TwiceA", type="ecg_twice"), "ecg_twice")
    provide("twice_b", TYPE.format(name="TwiceB", type="ecg_twice"), "ecg_twice")
    both = r"encoder type 'ecg_twice' is provided by twice_[ab] 1\.2 .* and by twice_[ab] 1\.2 .*: .*uninstall"
    with pytest.raises(ValueError, match=both):
        register_installed(set())
    with pytest.raises(ValueError, match=both):
        new_encoder("ecg_twice")
    assert "twice_a" not in sys.modules and "twice_b" not in sys.modules


def test_a_type_of_ours_is_not_given_away(provide):
    provide("thief_pkg", TYPE.format(name="Thief", type="ecg_melp"), "ecg_melp")
    with pytest.raises(ValueError, match=r"encoder type 'ecg_melp' is provided by ecg-elm and by thief_pkg 1\.2"):
        register_installed({"ecg_melp"})
    assert "thief_pkg" not in sys.modules and type(new_encoder("ecg_melp", num_hidden_layers=1)[0]) is MelpModel


@pytest.mark.slow
def test_a_package_that_begins_the_import_registers_itself(provide, tmp_path):
    """Its first lines import us, before any class of its own is there: no warning, and it is known afterwards."""
    provide("first_pkg", TYPE.format(name="First", type="ecg_first"), "ecg_first")
    script = "import first_pkg, transformers; print(transformers.CONFIG_MAPPING['ecg_first'].__name__)"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "FirstConfig"), done.stderr
    assert "cannot be imported" not in done.stderr and "registered no encoder" not in done.stderr


def test_what_is_no_encoder_type_is_unknown(tmp_path):
    for name in ("ecg_nowhere", "bert", "os.path", "encoders.patch"):
        assert find_config(name) is None
        with pytest.raises(
            ValueError, match=f"unknown encoder type '{name}': is the package that provides it installed"
        ):
            new_encoder(name)
        (tmp_path / "config.json").write_text(f'{{"model_type": "{name}"}}')
        with pytest.raises(ValueError, match="unknown encoder type"):
            load_encoder(tmp_path)
        with pytest.raises(ValueError, match="unknown encoder type"):
            ElmConfig(encoder_config={"model_type": name})


def test_a_module_that_is_named_in_a_folder_is_not_imported(tmp_path, monkeypatch):
    imported = []
    monkeypatch.setattr(importlib, "import_module", lambda name, *_: imported.append(name))
    monkeypatch.setattr(registry.plugins, "import_module", lambda name, *_: imported.append(name))
    (tmp_path / "config.json").write_text(
        '{"model_type": "antigravity", "auto_map": {"AutoModel": "antigravity.Model"}}'
    )
    with pytest.raises(ValueError, match="unknown encoder type 'antigravity'"):
        load_encoder(tmp_path)
    assert not imported and "antigravity" not in sys.modules


def test_what_cannot_be_registered():
    class Config(PatchConfig):
        model_type = "ecg_refused"

    class Encoder(PatchEncoder):
        config_class = Config

    def extractor(name, base=PatchFeatureExtractor):
        return type(name, (base,), {})

    with pytest.raises(ValueError, match="encoder PatchEncoder: the model_type 'ecg_patch' is taken"):
        register(PatchEncoder, PatchFeatureExtractor)
    with pytest.raises(
        ValueError, match="Encoder: there is another feature extractor class named PatchFeatureExtractor;"
    ):
        register(Encoder, extractor("PatchFeatureExtractor"))
    with pytest.raises(TypeError, match="does not derive from encoders.base.EcgFeatureExtractor"):
        register(Encoder, extractor("Loose", base=object))
    with pytest.raises(TypeError, match="None does not derive from encoders.base.EcgEncoderConfig"):
        Encoder.config_class = None
        register(Encoder, extractor("Fine", base=EcgFeatureExtractor))
    assert "ecg_refused" not in CONFIG_MAPPING
