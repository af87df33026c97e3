"""A copy of this tree, with its own kernels, in which a fault is planted and removed again."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.cuda_emulator.build import compiler, torch_folder
from tests.planted_faults.table import Fault

ROOT = Path(__file__).parents[2]
WORKPLACE = Path(tempfile.gettempdir()) / f"lapal_ext_planted_faults-{os.getuid()}"
_MODULE = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", flags=re.MULTILINE)


class Copy:
    """The sources of this tree, as git lists them, under ``WORKPLACE``; unchanged files keep their dates.

    The objects of the last run stay there too: a kernel is compiled again only if it has changed.
    """

    def __init__(self) -> None:
        self.tree, self.objects = WORKPLACE / "tree", WORKPLACE / "build"
        listed = _run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).stdout.splitlines()
        files = [name for name in listed if (ROOT / name).is_file()]
        for name in files:
            source, target = (ROOT / name).read_bytes(), self.tree / name
            if not target.exists() or target.read_bytes() != source:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source)
        for path in [path for path in self.tree.rglob("*") if path.is_file()]:
            if path.relative_to(self.tree).as_posix() not in files and "__pycache__" not in path.parts:
                path.unlink()
        built = next((ROOT / "lapal_ext").glob(_MODULE), None)
        if built is not None:
            self._install(built)

    def build(self) -> None:
        """Compile all kernels; later a kernel with a fault is linked with the objects of the others."""
        settings = [
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DLAPAL_EXT_CUDA=off",
            "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        ]
        pybind11 = _run([sys.executable, "-m", "pybind11", "--cmakedir"], ROOT).stdout.strip()
        settings += [f"-Dpybind11_DIR={pybind11}", "-G", "Ninja"]
        _run(["cmake", "-S", str(self.tree / "csrc"), "-B", str(self.objects), *settings], WORKPLACE)
        _run(["cmake", "--build", str(self.objects)], WORKPLACE)
        self._install(self.objects / _MODULE)

    def find(self, fault: Fault) -> str | None:
        """The first test that fails with the fault; None if all pass."""
        path = self.tree / fault.file
        healthy = path.read_text(encoding="utf-8")
        if healthy.count(fault.old) != 1:
            raise ValueError(
                f"{fault.file} must contain the text that the fault replaces once, got {healthy.count(fault.old)}"
            )
        path.write_text(healthy.replace(fault.old, fault.new), encoding="utf-8")
        try:
            if fault.kind == "CPU kernel":
                self._install(self._linked_with(path))
            return self._first_failure(fault.tests)
        finally:
            # The date must be old again too, because the object compiled before is still right.
            path.write_text(healthy, encoding="utf-8")
            if fault.kind == "CPU kernel":
                newest = (self.objects / _MODULE).stat().st_mtime - 1000
                os.utime(path, (newest, newest))
                self._install(self.objects / _MODULE)

    def _linked_with(self, source: Path) -> Path:
        """A module of all objects, in which only this source is compiled again."""
        commands = json.loads((self.objects / "compile_commands.json").read_text())
        command = next(entry["command"] for entry in commands if Path(entry["file"]).samefile(source))
        target, module = WORKPLACE / "fault.o", WORKPLACE / "fault.so"
        words = shlex.split(command)
        replaced = words[words.index("-o") + 1]
        words[words.index("-o") + 1] = str(target)
        _run(words, self.objects)
        kept = [path for path in self.objects.rglob("*.o") if not path.samefile(self.objects / replaced)]
        library = torch_folder() / "lib" / "libtorch_cpu.so"
        link = [compiler(), "-shared", "-Wl,--as-needed", *map(str, kept), str(target), str(library), "-o", str(module)]
        _run(link, self.objects)
        return module

    def _install(self, module: Path) -> None:
        """Put the module into the copy as a new file, so that a process that has the old one open keeps it."""
        target = self.tree / "lapal_ext" / _MODULE
        target.unlink(missing_ok=True)
        target.write_bytes(module.read_bytes())
        (target.parent / "_build.json").write_text('{"native": true, "reason": ""}\n')

    def _first_failure(self, tests: tuple[str, ...]) -> str | None:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", *tests]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LAPAL_EXT_")}
        environment |= {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=self.tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return None
        found = _FAILED.search(done.stdout)
        if done.returncode == 1 and found:
            return found[1]
        # An error while tests are collected, of a process that died, or of the command itself.
        last = (done.stdout + done.stderr).strip().splitlines()[-1]
        if done.returncode in (4, 5):
            raise ValueError(f"no such tests: {tests}: {last}")
        return f"a run that ended with {done.returncode}: {last}"


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done
