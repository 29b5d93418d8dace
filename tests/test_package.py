"""What `import trim_trainer` gives, under which names, and what it does not load."""

import pkgutil
import subprocess
import sys

import trim_trainer


def test_import_loads_no_torch():
    code = "import sys, trim_trainer; dir(trim_trainer); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_public_name_is_the_name_of_a_module():
    assert not set(trim_trainer.__all__) & {module.name for module in pkgutil.iter_modules(trim_trainer.__path__)}


PAIRS = """
import itertools, sys, types

def fresh(*names):
    for module in [name for name in sys.modules if name.partition(".")[0] == "trim_trainer"]:
        del sys.modules[module]
    return [getattr(__import__("trim_trainer", fromlist=[name]), name) for name in names]

import trim_trainer
for name in trim_trainer.__all__:
    (found,) = fresh(name)
    assert isinstance(found, dict) or callable(found), (name, found)
for names in itertools.permutations(trim_trainer.__all__, 2):
    found = fresh(*names)
    assert not any(isinstance(each, types.ModuleType) for each in found), names
print("all", len(trim_trainer.__all__))
"""


def test_every_public_name_is_a_function_a_class_or_a_table_alone_and_behind_each_other():
    said = subprocess.run([sys.executable, "-c", PAIRS], capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.startswith("all "), said.stderr


def test_a_name_that_is_not_there_is_said():
    code = "import trim_trainer; trim_trainer.publisher"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "module 'trim_trainer' has no attribute 'publisher'" in said.stderr
