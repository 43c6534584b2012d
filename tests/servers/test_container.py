"""Images run by podman, where its probe says that they are held: the same bounds as in the sandbox, from an image."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from freehold.services.compute.executors.container import ContainerExecutor
from freehold.services.compute.executors.sandbox_probe import pack_image
from freehold.services.compute.executors.service import ServiceExecutor
from freehold.services.compute.tasks import Resources, Service, Task
from tests.servers.boxes import (
    MARK,
    MOST,
    PATIENT,
    SMALL,
    Ran,
    Traces,
    has_logged,
    make_work,
    run,
    wait_for,
)

MISSING = "not run: podman is not installed (apt install podman runc)"


class Images(NamedTuple):
    """An executor that works, and an image of a shell and a few programs."""

    executor: ContainerExecutor
    image: str

    def task(self, script: str, mark: str = "", resources: Resources = SMALL) -> Task:
        """A script in the image."""
        return Task(
            executor="container",
            kind="image",
            image=self.image,
            arguments=("sh", "-c", script),
            environment=((MARK, mark),),
            resources=resources,
        )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Containers, seen to be held."""
    if shutil.which("podman") is None:
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("podman")
    executor = ContainerExecutor(storage=folder)
    capability = asyncio.run(executor.probe())
    if not capability.works:
        pytest.skip(f"not run: containers do not work on this machine: {capability.reason}")

    async def make() -> str:
        podman = executor._podman
        assert podman is not None
        pack_image(folder / "image.tar")
        await podman.ask("import", "--quiet", str(folder / "image.tar"), "localhost/tested:1")
        digest = await podman.ask("image", "inspect", "--format", "{{.Digest}}", "localhost/tested:1")
        return f"localhost/tested@{digest}"

    try:
        yield Images(executor, asyncio.run(make()))
    finally:
        # podman leaves its storage mounted on itself.
        subprocess.run(["umount", str(folder / "images" / "overlay")], check=False, capture_output=True)


def test_probe_says_why_containers_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "podman").write_text("#!/bin/sh\necho 'Error: cannot re-exec process' >&2; exit 125\n")
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = asyncio.run(ContainerExecutor(storage=tmp_path).probe())
    assert not found.works
    assert "cannot re-exec process" in found.reason
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    found = asyncio.run(ContainerExecutor(storage=tmp_path).probe())
    assert (found.works, found.reason) == (False, "podman is not installed")


def test_image_gets_its_input_and_what_it_writes_comes_out(images: Images, tmp_path: Path) -> None:
    script = 'cat; cat /in/given; echo " $PWD"; echo made >made; echo log >&2; exit 7'
    ran = run(images.executor, make_work(tmp_path, images.task(script), stdin=b"standard "))
    assert ran.outcome[:3] == ("exited", 7, b"standard an input /out\n")
    assert ran.log == b"log\n"
    assert ran.files() == {"made": b"made\n"}


def test_image_that_is_not_here_is_refused(images: Images, tmp_path: Path) -> None:
    task = msgspec.structs.replace(images.task("true"), image="localhost/nothing@sha256:" + "0" * 64)
    ran = run(images.executor, make_work(tmp_path, task))
    assert ran.outcome.ended == "refused"
    assert "does not have the image" in ran.outcome.reason
    task = msgspec.structs.replace(images.task("true"), arguments=("no-such-program",))
    ran = run(images.executor, make_work(tmp_path, task))
    assert ran.outcome.ended == "refused"
    assert "no-such-program" in ran.outcome.reason
    task = msgspec.structs.replace(images.task("true"), arguments=("a" * 200_000,))
    assert run(images.executor, make_work(tmp_path, task)).outcome.ended == "refused"
    task = msgspec.structs.replace(images.task("true"), network=True)
    assert run(images.executor, make_work(tmp_path, task)).outcome.ended == "refused"


@pytest.mark.parametrize(
    ("ended", "script"),
    [
        ("time", "trap '' TERM; while :; do :; done"),
        ("processes", "while :; do sleep 60 & done"),
        ("memory", "text=aaaaaaaaaaaaaaaa; while :; do text=$text$text; done"),
        ("disk", "cat /dev/zero >/tmp/large"),
        ("output", "while :; do cat /bin/sh; done"),
        ("exited", "sleep 60 & exit 0"),
    ],
)
def test_image_is_held_to_its_bounds(ended: str, script: str, images: Images, tmp_path: Path) -> None:
    traces = Traces()
    most = MOST if ended == "time" else PATIENT
    ran = run(images.executor, make_work(tmp_path, images.task(script, traces.mark), most))
    assert ran.outcome.ended == ended, (ran.outcome.reason, ran.log[-500:])
    assert 0 < ran.outcome.measure <= most
    traces.assert_none()


def test_image_cannot_get_out(images: Images, tmp_path: Path) -> None:
    secret = tmp_path / "wallet.json"
    secret.write_text("secret")
    script = f"""
        cat {secret} && echo escaped
        for f in /escape /in/escape /bin/escape; do echo x >$f && echo escaped; done
        echo 1 >/proc/sys/kernel/core_pattern && echo escaped
        echo 1 >/sys/kernel/uevent_helper && echo escaped
        test $(wc -l </proc/net/route) -gt 1 && echo escaped
        grep Cap /proc/self/status | grep -v -e 0000000000000000 && echo escaped
        grep -q 'NoNewPrivs:.1' /proc/self/status || echo escaped
        grep -q 'Seccomp:.2' /proc/self/status || echo escaped
        unshare --user true && echo escaped
        test -d /proc/{os.getpid()} && echo escaped
        cat /proc/*/environ | grep -q FREEHOLD_NODE && echo escaped
        echo ended
    """
    ran = run(images.executor, make_work(tmp_path, images.task(script)))
    assert ran.text == "ended\n", ran.log


@pytest.mark.parametrize("how", ["cancel", "end", "stop"])
def test_containers_that_are_ended_leave_nothing(how: str, images: Images, tmp_path: Path) -> None:
    traces = Traces()

    async def main() -> Ran | None:
        script = "trap 'echo bye; exit' TERM; echo ready >&2; while :; do sleep 0.05; done"
        work = make_work(tmp_path, images.task(script, traces.mark))
        task = asyncio.create_task(images.executor.run(work))
        await wait_for(lambda: has_logged(work.folder, b"ready"))
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return None
        if how == "end":
            images.executor.end(work.folder)
        else:
            await images.executor.stop()
        return Ran(await task, b"", work.folder)

    ran = asyncio.run(main())
    if ran is not None:
        assert ran.outcome.ended == "stopped"
        assert ran.text == ("bye\n" if how == "end" else "")
    podman = images.executor._podman
    assert podman is not None
    assert asyncio.run(podman.ask("ps", "--all", "--quiet")) == ""
    traces.assert_none()


def test_service_in_a_container_is_reached(images: Images, tmp_path: Path) -> None:
    """Nothing in the image listens: what matters is that its network is joined, and its end is seen."""
    executor = ServiceExecutor(container=images.executor)
    executor._takes_images = True
    task = msgspec.structs.replace(images.task("echo up; exit 3"), executor="service", service=Service(every=0.1))
    work = make_work(tmp_path, task)

    async def main() -> None:
        running = asyncio.create_task(executor.run(work))
        await wait_for(lambda: has_logged(work.folder, b"up") and executor.status(work.folder).state == "waiting")
        assert executor.status(work.folder).reason == "it ended with status 3"
        executor.end(work.folder)
        assert (await running).ended == "stopped"

    asyncio.run(main())
