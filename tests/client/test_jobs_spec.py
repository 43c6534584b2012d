"""The job spec: what is taken, what is refused and where, YAML and Python alike, and the page that documents it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from freehold.client.jobs_schema import write_tables
from freehold.client.jobs_sources import check_sources
from freehold.client.jobs_spec import File, Job, Map, Resources, Step, Verify, load, parse
from freehold.client.jobs_yaml import SIZE_LIMIT, SpecError, read_yaml

DOCS = Path(__file__).resolve().parents[2] / "docs" / "jobs.md"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def read(text: str) -> Job:
    return parse(text.encode(), "job.yaml")


CYCLE = "steps:\n- {name: a, wasm: a, needs: [b]}\n- {name: b, wasm: b, needs: [c]}\n- {name: c, wasm: c, needs: [b]}\n"
MISTAKES = [
    # text, line, column, what the message says, what the hint says
    ("pyton: a.py\n", 1, 1, "there is no 'pyton' here", "Did you mean 'python'?"),
    ("python: a.py\nresources:\n  memory: 512 MX\n", 3, 11, 'expected a size, like "512 MiB"', ""),
    ("python: a.py\nresources:\n  memroy: 1 GiB\n", 3, 3, "there is no 'memroy' here", "Did you mean 'memory'?"),
    ("python: a.py\nresources: 3\n", 2, 12, "expected a mapping", ""),
    ("python: a.py\ndeadline: 0 s\n", 2, 11, "expected a length of time", ""),
    ("python: a.py\ndeadline: soon\n", 2, 11, "expected a length of time", ""),
    ("python: a.py\nmost: 1 dollar\n", 2, 7, "expected an amount", ""),
    ("python: a.py\nassurance: 1\n", 2, 12, "expected a probability", ""),
    ("python: a.py\nassurance: 0.99999999999\n", 2, 12, "expected a probability", ""),
    ("python: a.py\nverify: bit_exct\n", 2, 9, "expected one of bit_exact", "Did you mean 'bit_exact'?"),
    ("python: a.py\nverify: tolerance\n", 2, 9, "goes by a metric", ""),
    ("python: a.py\nretries: -1\n", 2, 10, "expected a whole number from 0 to 100", ""),
    ("python: a.py\nnetwork: yes\n", 2, 10, "expected true or false", ""),
    ("python: a.py\narguments: 5\n", 2, 12, "expected a list", ""),
    ("python: a.py\nwasm: b.wasm\n", 1, 9, "exactly one of", ""),
    ("arguments: [1]\n", 1, 1, "exactly one of", ""),
    ("python: a.py\nservice: {port: 80}\n", 1, 9, "a service is a program", ""),
    ("python: a.py\ninputs:\n  ../x: a.txt\n", 3, 3, "no path below", ""),
    ("python: a.py\ninputs:\n  /etc/passwd: a.txt\n", 3, 3, "no path below", ""),
    ("python: a.py\ninputs:\n  x/: a.txt\n", 3, 3, 'both end with "/"', ""),
    ("python: a.py\ninputs:\n  x: {text: a, url: 'https://b'}\n", 3, 13, "here are 2", ""),
    ("python: a.py\ninputs:\n  x: fh://B/a\n", 3, 6, "not a bucket's name", ""),
    ("python: a.py\nmap: fh://demo/photo.jpg\n", 2, 6, "a map goes over a folder", ""),
    ("python: a.py\nneeds: [other]\n", 2, 9, "there is no such step", ""),
    ("steps:\n- {name: a, wasm: x}\n- {name: a, wasm: y}\n", 3, 10, "two steps are called 'a'", ""),
    (CYCLE, 3, 10, "in a circle: b -> c -> b", ""),
    ("steps:\n- {name: a, wasm: x, needs: [a]}\n", 2, 10, "in a circle: a -> a", ""),
    ("python: a.py\nwhere: 'cpu.cores >'\n", 2, 8, "column 12: expected a number, found the end", ""),
    ("steps:\n- {name: a, wasm: x, where: a b}\n", 2, 29, "column 3: expected =, !=", ""),
    ("image: busybox\n", 1, 8, "expected an image by its digest", ""),
    ("image: 'busybox@sha256:aa'\n", 1, 8, "expected an image by its digest", ""),
    ("python: a.py\nmap: []\n", 2, 6, "without items", ""),
    ("python: a.py\ninputs: {a: {text: x}, a/b: {text: y}}\n", 2, 24, "'a/b' would lie below it", ""),
    ("steps: []\n", 1, 1, "at least one step", ""),
    ("steps:\n- wasm: x\npython: a.py\n", 3, 1, "'python' is a step's", ""),
    ("python: a.py\npython: b.py\n", 2, 1, "stands here twice", ""),
    ("python: &a x\nwasm: *a\n", 1, 9, "anchors and aliases", ""),
    ("python: !!python/object:os.system x\n", 1, 9, "tags are not taken", ""),
    ("python: a.py\n---\nb: c\n", 2, 1, "a spec is one document", ""),
    ("python: [1\n", 2, 1, "this is not YAML", ""),
    ("- a\n", 1, 1, "a spec is a mapping", ""),
    ("", 1, 1, "the spec is empty", ""),
]


@pytest.mark.parametrize(("text", "line", "column", "message", "hint"), MISTAKES)
def test_a_mistake_is_shown_where_it_stands(text: str, line: int, column: int, message: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(text)
    assert message in caught.value.message
    assert hint in caught.value.advice
    assert (caught.value.details.get("line"), caught.value.details.get("column")) == (line, column)
    assert caught.value.message.startswith(f"job.yaml:{line}:{column}: ")


def test_a_spec_that_would_grow_is_refused_at_once() -> None:
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}, *a{n}]\n" for n in range(40))
    for text in (laughs, "[" * 100_000, "{a: " * 10_000, "- x\n" * 200_000, "x" * (SIZE_LIMIT + 1), "\x00", "a: \x01"):
        with pytest.raises(SpecError):
            read_yaml(text.encode(), "job.yaml")
    with pytest.raises(SpecError, match=r"job.yaml:2:1: this is not UTF-8"):
        read_yaml(b"a: b\nc: \xff\n", "job.yaml")


def test_words_are_text_where_text_is_expected() -> None:
    (step,) = read("script: |\n  print(1)\narguments: [no, 1e3, 007, null]\nenvironment: {A: on}\n").steps
    assert step.arguments == ("no", "1e3", "007", "null")
    assert step.environment == {"A": "on"}
    assert step.script == "print(1)\n"


def test_units_are_exact() -> None:
    job = read("python: a\nmost: 0.05 credits\ndeadline: 1.5 h\nresources: {memory: 1.5 GiB, disk: 2 GB, time: 90}\n")
    assert job.most == 5 * 10**16
    assert job.deadline == 5400
    resources = job.steps[0].resources
    assert (resources.memory, resources.disk, resources.time) == (3 * 2**29, 2 * 10**9, 90)
    with pytest.raises(SpecError):
        read("python: a\nresources: {memory: 0.3 B}\n")


def test_yaml_and_python_are_the_same_and_survive_the_journal() -> None:
    text = """
        name: both
        deadline: 10 min
        assurance: 0.9990
        steps:
          - name: first
            script: print(1)
            map: {lines: words.txt, each: 10}
          - name: second
            python: b.py
            inputs: {"parts/": {step: first, stdout: true}, note: {text: hello}}
            resources: {memory: 1 GiB}
            verify: {kind: tolerance, metric: psnr, threshold: 5}
    """
    job = read(text)
    first = Step(name="first", script="print(1)", map=Map(lines="words.txt", each=10))  # type: ignore[arg-type]
    second = Step(
        name="second",
        python="b.py",
        inputs={"parts/": File(step="first", stdout=True), "note": File(text="hello")},
        resources=Resources(memory="1 GiB"),  # type: ignore[arg-type]
        verify=Verify(kind="tolerance", metric="psnr", threshold=5),
    )
    again = Job(name="both", deadline="10 min", assurance=0.999, steps=[first, second])  # type: ignore[arg-type]
    assert job == again
    assert Job.of(job.to_json()) == job
    assert [step.name for step in job.order()] == ["first", "second"]
    assert second.before == ("first",)


def test_steps_come_after_what_they_need() -> None:
    job = read("steps:\n- {name: c, wasm: c, needs: [a, b]}\n- {name: b, wasm: b, needs: [a]}\n- {name: a, wasm: a}\n")
    assert [step.name for step in job.order()] == ["a", "b", "c"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_specs(path: Path) -> None:
    assert load(path).steps


def test_the_specs_on_the_page_are_specs_and_the_long_one_is_the_example() -> None:
    found = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert [parse(text.encode(), "jobs.md").name for text in found[:2]] == ["job", "word-count"]
    example = (EXAMPLES / "word-count.yaml").read_text(encoding="utf-8")
    assert found[1] == "".join(line for line in example.splitlines(keepends=True) if not line.startswith("#"))


def test_the_local_files_of_the_examples_are_there() -> None:
    for path in sorted(EXAMPLES.glob("*.yaml")):
        check_sources(load(path), EXAMPLES)


def test_the_page_has_the_fields_as_they_are() -> None:
    assert write_tables() in DOCS.read_text(encoding="utf-8"), "run the tables of jobs_schema.py into docs/jobs.md"
