"""The container executor: OCI images by their digests, run by podman where its probe says that they are held.

A container has no network, no capability, a read-only root, the inputs at /in, /out and /tmp in memory, and the
sandbox's filter of system calls. Its user is root inside: without capabilities, and outside the user that the node is.
Images are the machine's own, pulled by its operator, unless the operator lets tasks pull.

podman itself works on some machines only (cgroups, runtimes, storage differ): the probe finds options that do.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freehold.protocol.errors import InvalidInput, Unavailable
from freehold.services.compute.executors.cgroups import LEAST_MEMORY, is_running
from freehold.services.compute.executors.container_process import Container, Podman
from freehold.services.compute.executors.runs import Runs, refusal
from freehold.services.compute.executors.sandbox_command import ENVIRONMENT, OPEN_FILES, check_resources, check_words
from freehold.services.compute.executors.sandbox_filter import build_profile
from freehold.services.compute.executors.sandbox_probe import probe_container
from freehold.services.compute.executors.seam import Capability, Outcome, Work
from freehold.services.compute.tasks import Task

RUNTIME_TASKS = 16  # threads that the runtime needs to start a container, beside the task's own
LATE = 60  # seconds beyond its time after which podman ends a container whose node is gone
LABEL = "freehold.node"
# What is tried, in this order, until containers work: the machine's own choice, runc, and runc without systemd.
OPTIONS = ((), ("--runtime", "runc"), ("--runtime", "runc", "--cgroup-manager", "cgroupfs"))


class ContainerExecutor(Runs):
    """Runs images. Settings: `network` (whether a task that asks for the host's network gets it), `container_pull`
    (whether images are pulled). `storage`: a folder for images and containers, other than podman's own."""

    name = "container"

    def __init__(self, settings: Mapping[str, Any] | None = None, storage: Path | None = None) -> None:
        super().__init__()
        found = settings or {}
        self._network = bool(found.get("network", False))
        self._pulls = bool(found.get("container_pull", False))
        self._storage = (
            () if storage is None else ("--root", str(storage / "images"), "--runroot", str(storage / "run"))
        )
        self._podman: Podman | None = None
        self.is_counted = False  # whether a cgroup held the last run

    async def find_out(self) -> Capability:
        """Run a small image that tries what it must not be able to do."""
        self._podman = None
        found = Capability(False, "podman is not installed", {})
        for options in OPTIONS:
            try:
                self._podman = Podman((*self._storage, *options))
                await self._sweep(self._podman)
                found = await probe_container(self, self._podman)
            except (Unavailable, OSError) as error:
                found = Capability(False, str(error), {})
            if found.works:
                return found
            self._podman = None
        return found

    async def run(self, work: Work) -> Outcome:
        """See the seam. Unavailable where podman failed."""
        return await self.run_in_box(work, self)

    async def open_box(self, work: Work, echo: bool = False) -> Container:
        """See `runs.BoxOpener`. `echo`: its standard output goes to the log too."""
        check_resources(work.task.resources)
        podman = self._podman
        if podman is None:
            raise Unavailable("podman was not seen to work here")
        await self._have(podman, work.task)
        profile = work.folder / "calls.json"
        profile.write_text(json.dumps(build_profile()))
        inputs = work.folder / "in"
        inputs.mkdir(exist_ok=True)
        box = Container(podman, work.task.resources, work.log, echo)
        try:
            await box.launch(self._options(work.task, inputs, profile, work.stdin is not None), work.stdin)
            self.is_counted = box.is_counted
        except BaseException as error:
            await asyncio.shield(asyncio.ensure_future(box.close()))
            if isinstance(error, OSError):
                raise refusal(error) from None
            raise
        return box

    async def _have(self, podman: Podman, task: Task) -> None:
        """InvalidInput unless the task's image is here, or was pulled now."""
        if task.network and not self._network:
            raise InvalidInput("this node gives tasks no network")
        if await podman.tells("image", "exists", task.image):
            return
        if not self._pulls:
            raise InvalidInput(f"this node does not have the image {task.image}, and pulls none")
        try:
            await podman.ask("pull", "--quiet", task.image)
        except Unavailable as error:
            raise InvalidInput(f"the image cannot be pulled: {error.message}") from None

    def _options(self, task: Task, inputs: Path, profile: Path, is_fed: bool) -> Sequence[str]:
        """podman's, for `create`, with the image and its arguments."""
        resources = task.resources
        environment = {**ENVIRONMENT, **dict(task.environment)}
        check_words(task.arguments, environment)
        memory = str(max(resources.memory + resources.disk, LEAST_MEMORY))
        words = [
            "--label",
            f"{LABEL}={os.getpid()}",
            "--pull",
            "never",
            "--image-volume",
            "ignore",
            "--log-driver",
            "none",
        ]
        words += ["--network", "host" if task.network else "none", "--no-hosts", "--hostname", "freehold"]
        words += ["--http-proxy=false", "--systemd=false", "--cgroupns", "private", "--ipc", "private"]
        words += ["--read-only", "--read-only-tmpfs=false", "--user", "0:0", "--workdir", "/out"]
        words += ["--cap-drop", "all", "--security-opt", "no-new-privileges", "--security-opt", f"seccomp={profile}"]
        words += ["--memory", memory, "--memory-swap", memory, "--shm-size", str(resources.memory)]
        words += ["--pids-limit", str(resources.processes + RUNTIME_TASKS)]
        if resources.processors < (os.cpu_count() or 1):
            words += ["--cpus", str(resources.processors)]
        for name, limit in (("nofile", OPEN_FILES), ("nproc", resources.processes + RUNTIME_TASKS), ("core", 0)):
            words += ["--ulimit", f"{name}={limit}:{limit}"]  # podman's own ask for more than some machines give
        words += ["--timeout", str(resources.seconds + LATE)]
        for folder, mode in (("/out", "0755"), ("/tmp", "1777")):  # noqa: S108 - in the container
            words += ["--tmpfs", f"{folder}:rw,nosuid,nodev,exec,size={resources.disk},mode={mode}"]
        words += ["--volume", f"{inputs}:/in:ro,nosuid,nodev"]
        words += [word for name, value in sorted(environment.items()) for word in ("--env", f"{name}={value}")]
        words += ["--interactive"] if is_fed else []
        return [*words, "--", task.image, *task.arguments]

    async def _sweep(self, podman: Podman) -> None:
        """Remove the containers of nodes that are gone."""
        said = await podman.ask("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.ID}} {{.Labels}}")
        for line in said.splitlines():
            identity, _, labels = line.partition(" ")
            owner = labels.partition(f"{LABEL}:")[2].partition("]")[0].split(" ")[0]
            if owner.isdigit() and not is_running(owner):
                await podman.ask("rm", "--force", "--time", "0", identity)
