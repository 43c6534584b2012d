"""Runs one Python script inside WebAssembly: the program of the component that `toolchain.python_runner` builds.

This file and its neighbours are no part of the node: componentize-py puts them into the component together with CPython
and the modules below, all loaded beforehand, so that a job starts in a millisecond. WASI is stubbed: the component has
no imports but `host` of job.wit.
"""

import gc
import importlib
import io
import linecache
import os
import pkgutil
import random
import sys
import traceback

import job_files
import job_world
import steady
import wit_world

# What a component without files to load from must have loaded. Packages bring all of their modules.
LEFT_OUT = {
    *("antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "ensurepip", "pip", "venv", "lib2to3"),
    *("test", "pydoc", "pydoc_data", "curses", "multiprocessing", "wsgiref", "xmlrpc", "webbrowser", "pty", "tty"),
    *("ctypes", "dbm", "sqlite3", "pdb", "bdb", "cProfile", "profile", "pstats", "smtplib", "imaplib", "poplib"),
    *("ftplib", "socketserver", "readline", "rlcompleter", "msilib", "winreg", "site", "_pyrepl", "sysconfig"),
}
PACKAGES = ("collections", "concurrent", "compression", "email", "html", "importlib", "json", "logging")
PACKAGES += ("pathlib", "re", "string", "unittest", "urllib", "xml", "zipfile", "zoneinfo")

# Imported by the interpreter itself, when it comes to them.
HIDDEN = ("_ast_unparse", "_pydecimal", "_pylong", "_strptime", "_suggestions", "_threading_local")
ENCODINGS = (
    "ascii",
    "base64_codec",
    "charmap",
    "cp1252",
    "cp437",
    "cp850",
    "hex_codec",
    "idna",
    "iso8859_15",
    "latin_1",
)
ENCODINGS += ("punycode", "raw_unicode_escape", "rot_13", "unicode_escape", "utf_16", "utf_16_be", "utf_16_le")
ENCODINGS += ("utf_32", "utf_32_be", "utf_32_le", "utf_7", "utf_8", "utf_8_sig")

REHEARSALS = 20
SCRIPT = """
import json, sys
json.loads(sys.stdin.read() or "[1, 2.5, {}]")
json.dump({"a": [1, "x", None]}, sys.stdout)
print(sys.argv)
"""


def load(name):
    try:
        return importlib.import_module(name)
    except Exception:
        return None  # not on this platform: `import` will say so to the script as well


job_world.install()
importlib.import_module("job_loop").install()  # after the clock is in place: asyncio and others take its functions
for module_name in (*HIDDEN, *(f"encodings.{name}" for name in ENCODINGS)):
    load(module_name)
for module_name in sorted(sys.stdlib_module_names - LEFT_OUT):
    if not module_name.startswith("_"):
        load(module_name)
for module_name in PACKAGES:
    package = load(module_name)
    for found in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{module_name}."):
        if "__main__" not in found.name:
            load(found.name)
del found  # it knows when folders were changed


class WitWorld(wit_world.WitWorld):
    """The component's export."""

    def run(self, source, arguments, environment):
        job_world.started = True
        sys.stdin = io.TextIOWrapper(io.BufferedReader(job_files.Stream(0), 65536), "utf-8")
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(job_files.Stream(1), 65536), "utf-8")
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(job_files.Stream(2), 65536), "utf-8", "backslashreplace", line_buffering=True
        )
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        sys.argv = ["script.py", *arguments]
        os.environ.clear()
        os.environ.update(dict(environment))
        random.seed(0)
        main = type(sys)("__main__")
        main.__builtins__ = __builtins__
        main.__file__ = "script.py"
        sys.modules["__main__"] = main
        linecache.cache["script.py"] = (len(source), None, source.splitlines(keepends=True), "script.py")
        status = self.execute(source, main.__dict__)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return status

    def execute(self, source, names):
        """The exit status of the script."""
        try:
            exec(compile(source, "script.py", "exec", dont_inherit=True), names)
        except SystemExit as left:
            if left.code is None or isinstance(left.code, int):
                return (left.code or 0) & 0xFF
            print(left.code, file=sys.stderr)
            return 1
        except BaseException as error:
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            traceback.print_exc()
            return 1
        return 0


class Rehearsal:
    """The host while the component is built: there are no files, and nobody reads what is written."""

    def __getattr__(self, name):
        return lambda *_: {"read": "", "status": (44, 0, 0, 0)}.get(name)


def rehearse():
    """Run scripts before there is a job: what the interpreter notes down when it first runs a function is then in the
    component, and not on pages that every job has to copy (a fifth of them)."""
    host, arguments, environment = job_files.host, sys.argv, dict(os.environ)
    streams, main = (sys.stdin, sys.stdout, sys.stderr), sys.modules["__main__"]
    job_files.host = Rehearsal()
    for _ in range(REHEARSALS):
        WitWorld().run(SCRIPT, ["argument"], [("NAME", "value")])
    job_files.host, sys.argv, sys.modules["__main__"] = host, arguments, main
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams
    os.environ.clear()
    os.environ.update(environment)
    job_world.started = False


job_files.install()
sys.addaudithook(job_world.refuse_native)
rehearse()
del sys.modules["steady"]
gc.collect()
gc.freeze()  # what a job never frees is not looked at again: each page touched is a page copied
steady.scrub()
