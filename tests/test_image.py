"""The steps of the Dockerfile, replayed in folders of Debian that debootstrap makes. The image itself is not built here.

A stage is a folder: what `FROM debian:..` says is made by debootstrap, RUN is a shell in a chroot, COPY copies. What Docker
adds (layers, its network, its users of a running container) is not tried.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.telemetry.observed_runs import corpus

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction with its arguments, in order."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", text))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


CERTIFICATES = "/etc/certificates-of-the-host.crt"
STEPS = instructions(DOCKERFILE.read_text())


def is_sent(name: str) -> bool:
    """Whether .dockerignore lets a path into the build; the last pattern that fits decides."""
    sent = True
    for pattern in (line for line in IGNORED if line and not line.startswith("#")):
        bare = pattern.removeprefix("!").removeprefix("**/")
        if fnmatch(name, bare) or fnmatch(name.split("/")[0], bare) or bare in name.split("/"):
            sent = pattern.startswith("!")
    return sent


def copied() -> list[tuple[str, list[str], str]]:
    """From which stage ("" is this folder) which paths are copied where."""
    found = []
    for name, rest in STEPS:
        if name == "COPY":
            words = shlex.split(rest)
            stage = words.pop(0).partition("=")[2] if words[0].startswith("--from") else ""
            found.append((stage, words[:-1], words[-1]))
    return found


def test_what_is_copied_is_there_and_is_sent_and_nothing_else_is():
    sources = {source for stage, sources, _ in copied() if not stage for source in sources}
    for source in sources:
        assert (ROOT / source).exists()
        assert is_sent(source)
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {packaged["project"]["readme"], *packaged["project"]["license-files"], "pyproject.toml"}
    assert needed <= sources
    assert sources == {item.name for item in ROOT.iterdir() if is_sent(item.name)}
    assert not is_sent("pipeline/__pycache__")
    assert not is_sent(".venv")


def test_the_image_has_no_root_and_starts_our_command():
    last = dict(STEPS)
    assert json.loads(last["ENTRYPOINT"]) == ["embedding-pipeline"]
    assert int(last["USER"]) > 0
    assert last["ENV"].startswith("PATH=/opt/venv/bin:")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (chosen,) = (rest for name, rest in STEPS if name == "ARG" and rest.startswith("EXTRAS="))
    assert set(chosen.partition("=")[2].split(",")) <= extras.keys()


# --- the steps themselves


@dataclass
class Stage:
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    user: str = "0"
    place: str = "/"

    def run(self, command: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a line of shell in the folder, with /proc and a /dev/shm that are gone afterwards."""
        inside = shlex.join(["chroot", f"--userspec={self.user}:{self.user}", str(self.folder), "sh", "-c",
                             f"cd {self.place} && {command}"])  # fmt: skip
        mounts = f"mount -t proc proc {self.folder}/proc && mount -t tmpfs shm {self.folder}/dev/shm && exec {inside}"
        home = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", mounts], env=home | self.variables | more, capture_output=True, text=True,
            timeout=1500,
        )  # fmt: skip


def filled(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], text)


def replay(folder: Path, wheels: Path | None) -> Stage:
    """Replay all steps and return the last stage. Torch comes from these `wheels` where they are given."""
    stages: dict[str, Stage] = {}
    everywhere: dict[str, str] = {}
    stage = Stage(folder)
    for name, rest in STEPS:
        if name == "ARG":
            key, _, value = rest.partition("=")
            if key == "TORCH_INDEX" and wheels is not None:
                value = index_of(wheels, stage.folder)
            if key == "DEBIAN":
                value = os.environ.get("PIPELINE_TEST_DEBIAN", value)
            (stage.variables if stages else everywhere)[key] = value
        elif name == "FROM":
            image, _, title = filled(rest, everywhere).partition(" AS ")
            stage = stages[title] = Stage(folder / (title or "last"))
            debian(folder, image, stage.folder)
        elif name == "ENV":
            stage.variables |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif name == "RUN":
            done = stage.run(rest, **online())
            assert done.returncode == 0, f"{rest}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        elif name == "COPY":
            copy(rest, stages, stage)
        elif name == "USER":
            stage.user = rest
        elif name == "WORKDIR":
            stage.place = rest
    return stage


def debian(folder: Path, image: str, target: Path) -> None:
    release = re.fullmatch(r"debian:(\w+)-slim", image)[1]
    base = folder / release
    if not base.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["debootstrap", "--variant=minbase", release, str(base)], check=True, capture_output=True)
        for path in ("/etc/resolv.conf", "/etc/hosts"):
            shutil.copy(path, f"{base}{path}")
        if "PIP_CERT" in os.environ:
            shutil.copy(os.environ["PIP_CERT"], f"{base}{CERTIFICATES}")
    subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(target)], check=True)


def copy(rest: str, stages: dict[str, Stage], stage: Stage) -> None:
    """Copy files into a folder, and folders to where they are said to be."""
    words = shlex.split(rest)
    home = stages[words.pop(0).partition("=")[2]].folder if words[0].startswith("--from") else ROOT
    *sources, place = (word.lstrip("/") for word in words)
    target = stage.folder / place
    for source in sources:
        into = target / source if place.endswith("/") else target
        into.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "-T", str(home / source), str(into)], check=True)
    for cache in target.rglob("__pycache__") if home == ROOT else ():
        shutil.rmtree(cache)


def online() -> dict[str, str]:
    """What pip has to know where this machine reaches PyPI in a way of its own."""
    return {"PIP_CERT": CERTIFICATES} if "PIP_CERT" in os.environ else {}


def index_of(wheels: Path, base: Path) -> str:
    """The address of an index within the folder that holds these wheels of torch."""
    home = base / "wheels" / "torch"
    home.mkdir(parents=True)
    found = list(wheels.glob("torch-*.whl"))
    for wheel in found:
        shutil.copy(wheel, home / wheel.name)
    (home / "index.html").write_text("".join(f'<a href="{wheel.name}">{wheel.name}</a>' for wheel in found))
    return "file:///wheels"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_make_a_command_that_embeds_as_a_user_without_rights(tiny_model, tmp_path):
    for name in ("debootstrap", "unshare", "chroot"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is missing: apt-get install debootstrap")
    if os.getuid():
        pytest.skip("only root can enter a chroot")
    made = Path(os.environ.get("PIPELINE_TEST_IMAGE", tmp_path / "image"))
    wheels = os.environ.get("PIPELINE_TEST_WHEELS")
    stage = replay(made, Path(wheels) if wheels else None)
    assert stage.run("embedding-pipeline --version").stdout.startswith("embedding-pipeline ")
    assert stage.run("sh -lc 'ray --version'").stdout.startswith("ray, version")
    assert stage.run("id -u").stdout.strip() == "10001"
    data = stage.folder / "data" / "trial"
    data.mkdir()
    corpus(data, 8)
    shutil.copytree(tiny_model, data / "model")
    config = {
        "source": {"path": "/data/trial/corpus.jsonl", "id": "id", "text": "text"},
        "model": {"path": "/data/trial/model"},
        "table": {"path": "/data/trial/table"},
        "metrics": {"textfile": "/data/trial/run.prom"},
    }
    (data / "run.yaml").write_text(json.dumps(config))
    subprocess.run(["chown", "-R", "10001:10001", str(data)], check=True)
    for expected in (True, False):
        done = stage.run("embedding-pipeline embed /data/trial/run.yaml --json --log json", HOME="/home/embedding")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["published"] is expected
        assert [json.loads(line) for line in done.stderr.splitlines()][-1]["event"] == "ended"
    assert "embedding_pipeline_table_rows" in (data / "run.prom").read_text()
