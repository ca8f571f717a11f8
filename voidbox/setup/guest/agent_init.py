#!/usr/bin/{python} -ISB
"""PID 1 of a guest: the agent, on nothing but what lies beside this file.

-I: neither environment nor user's folder; -S: no site, which costs a third of the start; -B: the
compiled files are there already. Those that a boot needs come out of one more file, in one read: as
files of their own, they are a hundred small reads of a disk.
"""

import marshal
import sys
from _frozen_importlib import ModuleSpec  # importlib.machinery's own; that is a module more to read

ROOT = __file__.removesuffix("init")
FOLDER = f"{ROOT}usr/lib/voidbox"


class Bundle:
    """Finds and loads the modules of a file that voidbox.setup.guest_tree makes."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self._modules = marshal.loads(file.read())  # name: (path, whether a package, code)

    def find_spec(self, name, path=None, target=None):
        found = self._modules.get(name)
        if found is None:
            return None
        spec = ModuleSpec(name, self, origin=ROOT + found[0], is_package=found[1])
        spec.has_location = True
        if found[1]:
            spec.submodule_search_locations.append(spec.origin.rpartition("/")[0])
        return spec

    def create_module(self, spec):
        return None  # as any other

    def exec_module(self, module):
        _, _, code = self._modules.pop(module.__name__)  # nobody loads it twice
        exec(marshal.loads(code), module.__dict__)


sys.path.insert(0, FOLDER)
sys.meta_path.insert(0, Bundle(f"{FOLDER}/boot.bundle"))

from guest_agent.__main__ import main  # noqa: E402

main(sys.argv[1:])
