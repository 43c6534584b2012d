"""Python scripts and C programs as jobs: built by the real tools, once a machine, and run by the real executor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.services.compute import toolchain
from tests.conftest import SLOW
from tests.services.compute.wasm_world import Machine, Ran

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "compute"

pytestmark = pytest.mark.timeout(300)  # the first of them waits for the builds


@pytest.fixture(scope="module")
def runner() -> Path:
    return toolchain.python_runner(CACHE)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, runner: Path) -> Iterator[Machine]:
    machine = Machine(CACHE / "modules", tmp_path_factory.mktemp("runs"))
    try:
        machine.run("print()", runner=runner, within=250 * SLOW)  # compiles the runner
        yield machine
    finally:
        machine.close()


@pytest.fixture
def python(machine: Machine, runner: Path):  # type: ignore[no-untyped-def]
    def run(source: str, **options) -> Ran:  # type: ignore[no-untyped-def]
        return machine.run(source, runner=runner, **options)

    return run


@pytest.mark.soak  # two builds have differed once, and why is not found yet: nothing rests on it
def test_the_runner_has_the_same_bytes_wherever_it_is_built(
    runner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    for name, value in (("TMPDIR", str(tmp_path / "temporary")), ("PYTHONHASHSEED", "5"), ("LANG", "C")):
        monkeypatch.setenv(name, value)
    again = toolchain.python_runner(tmp_path / "a folder with another name")
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (runner, again)]
    assert hashes[0] == hashes[1]


def test_primes(python) -> None:
    source = (ROOT / "examples" / "primes.py").read_text()
    ran = python(source, arguments=["1000000"])
    assert ran.outcome.stdout == b"78498 primes below 1000000, the last is 999983\n"
    assert python(source, arguments=["1000000"]).outcome == ran.outcome
    wrong = python(source, arguments=["many"])
    assert (wrong.outcome.status, wrong.log) == (1, b"usage: primes.py BOUND\n")


def test_what_a_script_is_given(python) -> None:
    ran = python(
        "import sys, os, json\n"
        "json.dump([sys.argv[1:], sys.stdin.read(), dict(os.environ), open('/in/a/b.txt').read()], sys.stdout)\n"
        "sys.exit(3)",
        arguments=["x", "ü"],
        stdin="typed ü".encode(),
        environment={"NAME": "value"},
        inputs={"a/b.txt": "ünïcode".encode()},
    )
    assert json.loads(ran.outcome.stdout) == [["x", "ü"], "typed ü", {"NAME": "value"}, "ünïcode"]
    assert (ran.outcome.ended, ran.outcome.status) == ("exited", 3)


def test_a_small_function_costs_little(python) -> None:
    """What a map of small functions sends: arguments as JSON in, the result as JSON out."""
    source = "import json, sys\njson.dump(json.load(sys.stdin) ** 2, sys.stdout)"
    first, second = python(source, stdin=b"12").outcome, python(source, stdin=b"12").outcome
    assert (first.stdout, first) == (b"144", second)
    assert first.measure < 5_000_000


def test_files_by_the_usual_functions(python) -> None:
    ran = python(
        """
import os, pathlib, shutil, glob, tempfile
out = pathlib.Path("/out/deep/folder")
out.mkdir(parents=True)
(out / "text.txt").write_text("one\\n")
with open(out / "text.txt", "a") as file:
    file.write("two\\n")
with open(out / "bytes", "wb+") as file:
    file.write(bytes(range(256)) * 1000)
    file.seek(-2, 2)
    assert file.read() == b"\\xfe\\xff"
    file.truncate(1000)
assert (out / "text.txt").read_text().splitlines() == ["one", "two"]
assert os.path.getsize(out / "bytes") == 1000 and os.path.isdir("/in") and not os.path.exists("/out/none")
shutil.copytree("/out/deep", "/out/copy")
os.rename("/out/copy/folder/bytes", "/out/moved")
shutil.rmtree("/out/deep")
assert sorted(glob.glob("/out/**", recursive=True)) == [
    "/out/", "/out/copy", "/out/copy/folder", "/out/copy/folder/text.txt", "/out/moved"
]
with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    pathlib.Path(folder, "x").touch()
assert os.listdir("/tmp") == []
assert [entry.name for entry in os.scandir("/in")] == ["a", "b"]
os.chdir("/in")
assert open("a").read() == "A" and list(os.walk(".")) == [(".", [], ["a", "b"])]
print(os.stat("a"))
""",
        inputs={"b": b"B", "a": b"A"},
    )
    assert ran.outcome.status == 0, ran.log
    assert {str(path.relative_to(ran.out)) for path in ran.out.rglob("*") if path.is_file()} == {
        "copy/folder/text.txt",
        "moved",
    }
    assert (ran.out / "moved").read_bytes() == (bytes(range(256)) * 4)[:1000]
    assert b"st_mtime=0" in ran.outcome.stdout


def test_modules_beside_the_inputs(python) -> None:
    ran = python(
        "import helper, package.inner as i\nprint(helper.x + i.y)",
        inputs={"helper.py": b"x = 1", "package/inner.py": b"y = 2"},
    )
    assert ran.outcome.stdout == b"3\n"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import datetime; datetime.datetime.now()", "there is no clock in a job"),
        ("import datetime; datetime.date.today()", "there is no clock in a job"),
        ("import time; time.localtime()", "there is no clock in a job"),
        ("import os; os.urandom(8)", "there is no entropy in a job"),
        ("import uuid; uuid.uuid4()", "there is no entropy in a job"),
        ("import secrets; secrets.token_hex()", "there is no entropy in a job"),
        ("import socket; socket.socket()", "there is no network in a job"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1')", "there is no network in a job"),
        ("open('/etc/passwd')", "No such file or directory: '/etc/passwd'"),
        ("open('/in/../etc/passwd')", "No such file or directory"),
        ("open('/in/a', 'w')", "OSError: [Errno 69]"),
        ("import os; os.symlink('/etc/passwd', '/out/p')", "no such thing in a job"),
        ("import os; os.open('/etc/passwd', 0)", "no such thing in a job"),
        ("import os; os.fork()", "AttributeError"),
        ("import subprocess; subprocess.run(['ls'])", "does not support processes"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import numpy", "No module named 'numpy'"),
        ("x = []\nwhile True: x.append(' ' * 10**6)", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("1 / 0", "ZeroDivisionError"),
        ("if not python: pass else", "SyntaxError"),
        ("from concurrent.futures import ThreadPoolExecutor as T\nlist(T().map(str, [1]))", "can't start new thread"),
    ],
)
def test_what_a_script_must_not_or_cannot(python, source: str, error: str) -> None:
    ran = python(source, inputs={"a": b"A"}, memory=128 * 2**20)
    assert (ran.outcome.ended, ran.outcome.status) == ("exited", 1)
    assert error in ran.log.decode()


def test_what_measures_is_the_same_each_time(python) -> None:
    source = """
import asyncio, random, time, logging, datetime
began = time.perf_counter(); sum(range(10**5)); print(time.perf_counter() - began, time.time(), time.monotonic_ns())
random.seed(); print(random.random(), random.Random().random(), random.Random(5).random(), {"b", "a", "c"})
async def wait(): await asyncio.gather(asyncio.sleep(1), asyncio.sleep(2)); print(asyncio.get_running_loop().time())
asyncio.run(wait()); logging.warning("said"); time.sleep(1000)
print(datetime.datetime.strptime("2020-02-29", "%Y-%m-%d") + datetime.timedelta(1), hash("text"), id(object()))
"""
    first, second = python(source), python(source)
    assert first.outcome.status == 0, first.log
    assert first == second._replace(out=first.out)


def test_what_a_script_left_behind_is_gone(python) -> None:
    python(
        "import builtins, os, math\nbuiltins.left = os.left = math.pi = 1\n"
        "os.environ['LEFT'] = 'x'\nopen('/tmp/left', 'w')"
    )
    ran = python(
        "import os, math\nprint(math.pi > 3, hasattr(os, 'left'), 'left' in dir(__builtins__))\n"
        "print('LEFT' in os.environ, os.listdir('/tmp'))"
    )
    assert ran.outcome.stdout == b"True False False\nFalse []\n"


def test_bounds_of_a_script(python) -> None:
    loop = python("while True: pass", most=100_000_000).outcome
    assert (loop.ended, loop.measure) == ("fuel", 100_000_000)
    late = python("while True: pass", most=10**18, seconds=1).outcome
    assert (late.ended, late.measure > 10**6) == ("time", True)
    flood = python("f = open('/out/big', 'wb')\nwhile True: f.write(bytes(10**6))", disk=10**7).outcome
    assert flood.ended == "disk"
    assert flood == python("f = open('/out/big', 'wb')\nwhile True: f.write(bytes(10**6))", disk=10**7).outcome
    assert python("print('x' * 10**8)").outcome.ended == "output"


def test_steps(python) -> None:
    source = "import sys\nn = int(sys.stdin.read() or 0)\nopen('/out/n', 'w').write(str(n))\nprint(n + 1)"
    ran = python(source, steps=4)
    assert ran.outcome.states == (b"1\n", b"2\n", b"3\n", b"4\n")
    assert (ran.out / "n").read_text() == "3"
    assert python(source, stdin=b"2\n").outcome.stdout == b"3\n"


def test_a_script_that_is_no_text_and_a_runner_that_is_none(machine: Machine, runner: Path, tmp_path: Path) -> None:
    assert machine.run(b"\xff\xfe", runner=runner).outcome.ended == "refused"
    none = tmp_path / "none.wasm"
    none.write_bytes(b"\0asm\x0d\0\x01\0")  # a component with nothing in it
    outcome = machine.run("print(1)", runner=none).outcome
    assert (outcome.ended, outcome.reason) == ("refused", "the runner has no function called run")


def test_mandelbrot(machine: Machine) -> None:
    pytest.importorskip("ziglang", reason="not run: ziglang is not installed (make test-servers installs it)")
    program = toolchain.compile_c(ROOT / "examples" / "mandelbrot.c", CACHE).read_bytes()
    ran = machine.run(program, arguments=["64", "48"])
    assert (ran.outcome.status, ran.outcome.stdout) == (0, b"drew 64 x 48\n")
    image = (ran.out / "image.pgm").read_bytes()
    assert image == b"P5\n64 48\n255\n" + bytes(shade(x, y) for y in range(48) for x in range(64))


def shade(x: int, y: int) -> int:
    """A pixel of examples/mandelbrot.c at 64 x 48, by the same operations on the same doubles."""
    real = imaginary = 0.0
    for count in range(200):
        square, other = real * real, imaginary * imaginary
        if square + other > 4:
            return 255 - count * 255 // 200
        imaginary = 2 * real * imaginary + (2.4 * y / 48 - 1.2)
        real = square - other + (3.0 * x / 64 - 2.25)
    return 0
