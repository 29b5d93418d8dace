"""What `import trim_trainer` gives, under which names, and what it does not load."""

import os
import pkgutil
import subprocess
import sys

import pytest

import trim_trainer


def test_import_loads_no_torch():
    code = "import sys, trim_trainer; dir(trim_trainer); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_public_name_is_the_name_of_a_module():
    assert not set(trim_trainer.__all__) & {module.name for module in pkgutil.iter_modules(trim_trainer.__path__)}


# What importing one name leaves in the package is what a second finds there: a module of its name would be taken for it.
ALONE = """
import sys, types

import trim_trainer
for name in trim_trainer.__all__:
    for module in [module for module in sys.modules if module.partition(".")[0] == "trim_trainer"]:
        del sys.modules[module]
    package = __import__("trim_trainer", fromlist=[name])
    found = getattr(package, name)
    assert isinstance(found, dict) or callable(found), (name, found)
    left = [each for each in package.__all__ if isinstance(vars(package).get(each), types.ModuleType)]
    assert not left, (name, left)
print("all", len(trim_trainer.__all__))
"""


# bitsandbytes says something while it is imported on CPUs whose kernels it does not find; here always, in its own words.
LOUD_BITSANDBYTES = """
import importlib.abc, importlib.machinery, logging, sys

class Loud(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader
    def create_module(self, spec):
        return self.loader.create_module(spec)
    def exec_module(self, module):
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("LOUD: no kernels for this CPU")
        self.loader.exec_module(module)

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        if name == "bitsandbytes" and spec is not None:
            spec.loader = Loud(spec.loader)
        return spec

sys.meta_path.insert(0, Finder)
"""
QUANTIZED = """
import types, trim_trainer
from trim_trainer import TrimTrainer
assert "bitsandbytes" in sys.modules
from trim_trainer.import_messages import say_import_messages
config = types.SimpleNamespace(quant_method="bitsandbytes")
for model in (types.SimpleNamespace(), types.SimpleNamespace(hf_quantizer=types.SimpleNamespace(quantization_config=config))):
    say_import_messages(model)
    print("asked for", hasattr(model, "hf_quantizer"), file=sys.stderr, flush=True)
"""


def said_by(code):
    """What a fresh process prints, on a machine that may ask the Hub."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "names", [pytest.param("TrimTrainer", marks=pytest.mark.slow), ", ".join(trim_trainer.__all__)]
)
def test_importing_public_names_prints_nothing(names):
    assert (
        said_by(f"{LOUD_BITSANDBYTES}\nfrom trim_trainer import {names}\nassert 'bitsandbytes' in sys.modules") == ""
    )


def test_what_commands_import_prints_nothing():
    rooms = "recipe, trim_trainer.evaluation.checkpoints, trim_trainer.evaluation.quiet, trim_trainer.comparison.comparison"
    code = f"import trim_trainer.{rooms}\ntrim_trainer.evaluation.quiet.quiet_libraries()"
    assert said_by(f"{LOUD_BITSANDBYTES}\n{code}") == ""


@pytest.mark.slow
def test_what_bitsandbytes_said_is_said_once_a_model_is_quantized_with_it():
    said = said_by(LOUD_BITSANDBYTES + QUANTIZED)
    before, after = said.split("asked for False")
    assert "LOUD" not in before and after.count("LOUD: no kernels for this CPU") == 1


@pytest.mark.parametrize("code", ["import bitsandbytes", pytest.param("import peft", marks=pytest.mark.slow)])
def test_what_others_import_is_as_loud_as_without_us(code):
    assert "LOUD" in said_by(f"{LOUD_BITSANDBYTES}\nimport trim_trainer\n{code}")


def test_every_public_name_is_a_function_a_class_or_a_table_alone_and_behind_each_other():
    said = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.startswith("all "), said.stderr


def test_a_name_that_is_not_there_is_said():
    code = "import trim_trainer; trim_trainer.publisher"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "module 'trim_trainer' has no attribute 'publisher'" in said.stderr
