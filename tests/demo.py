"""The main job, for real: what a Docker tutorial teaches, against a ketchd and a registry of its own. `./dev demo`.

Prints each command as it is typed and what it answers; leaves nothing behind but the cached base image archive.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from ketch_testing.machine import Machine, free_port, registry

PROJECT = Path(__file__).parent.parent
EXAMPLE = PROJECT / "docs" / "examples" / "my-python-app"
USER, PASSWORD = "my-username", "correct-horse"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "/var/cache")) / "ketch-demo"


class Demo:
    """One run of the story."""

    def __init__(self, base: Path) -> None:
        self.machine = Machine(base / "machine", bridge="ketchdemo0")
        self.base = base
        self.started = time.monotonic()

    def title(self, text: str) -> None:
        """Where we are in the story."""
        print(f"\n\033[1m== {text}\033[0m  [{time.monotonic() - self.started:.1f} s]", flush=True)

    def ketch(
        self, *argv: str, stdin: bytes | None = None, quiet: bool = False, cwd: Path | None = None
    ) -> str:
        """Type one command; show it and its answer. Raises AssertionError when it fails."""
        print(f"\033[2m$\033[0m ketch {' '.join(argv)}", flush=True)
        done = self.machine.run("ketch", *argv, stdin=stdin, timeout=900, cwd=cwd)
        text = done.stdout.rstrip()
        if text and not quiet:
            lines = text.splitlines()
            shown = (
                lines
                if len(lines) <= 40
                else [*lines[:12], f"… {len(lines) - 24} more lines …", *lines[-12:]]
            )
            print("\n".join("  " + line for line in shown), flush=True)
        return text

    def base_image(self) -> None:
        """debian:bookworm with python3, from the distribution's own tool; kept as an archive for the next run."""
        self.title("1. A base image without any registry")
        archive = CACHE / "debian-bookworm-python3.tar"
        if archive.exists():
            self.ketch("load", "-q", "-i", str(archive))
            return
        self.ketch("image", "bootstrap", "debian:bookworm", "--include", "python3")
        CACHE.mkdir(parents=True, exist_ok=True)
        self.ketch("save", "-o", str(archive.with_suffix(".part")), "debian:bookworm")
        archive.with_suffix(".part").rename(archive)

    def build(self, context: Path) -> None:
        """Cold, cached, and after one source file changed."""
        self.title("2. Build")
        shutil.copytree(EXAMPLE, context)
        begun = time.monotonic()
        self.ketch("build", "-t", "my-python-app", ".", cwd=context)
        cold = time.monotonic() - begun
        begun = time.monotonic()
        again = self.ketch("build", "-t", "my-python-app", ".", cwd=context, quiet=True)
        cached = time.monotonic() - begun
        steps = again.count("Using cache")
        print(
            f"  again: {steps} steps from the cache, {cached * 1000:.0f} ms instead of {cold * 1000:.0f} ms"
        )
        assert steps >= 3, again
        source = context / "app.py"
        source.write_text(source.read_text() + "\n# changed\n")
        changed = self.ketch("build", "-t", "my-python-app:changed", ".", cwd=context, quiet=True)
        print(f"  one source file changed: {changed.count('Using cache')} steps from the cache")
        assert 0 < changed.count("Using cache") < steps, changed
        self.ketch("tag", "my-python-app", "my-python-app:v1.0")
        self.ketch("tag", "my-python-app", "my-python-app:stable")
        self.title("3. Images")
        self.ketch("images")

    def serve(self, image: str, name: str) -> None:
        """Run it, fetch the page, look at it."""
        port = free_port()
        self.ketch("run", "-d", "--name", name, "-p", f"{port}:5000", image)
        page = fetch(f"http://127.0.0.1:{port}/")
        print(f"  http://127.0.0.1:{port}/ answers: {page.strip()}")
        self.ketch("ps")
        self.ketch("logs", name)
        self.ketch("stop", "-t", "2", name)
        self.ketch("rm", name)

    def travel(self, host: str) -> None:
        """login, tag, push, rmi, pull by tag and by digest, run, logout."""
        remote = f"{host}/{USER}/my-python-app"
        self.title("5. A real registry")
        self.ketch("login", "-u", USER, "--password-stdin", host, stdin=PASSWORD.encode())
        self.ketch("tag", "my-python-app", f"{remote}:latest")
        pushed = self.ketch("push", f"{remote}:latest")
        digest = pushed.split("digest: ")[1].split()[0]
        names = [f"{remote}:latest", "my-python-app", "my-python-app:v1.0", "my-python-app:stable"]
        self.ketch("rmi", *names, "my-python-app:changed", "debian:bookworm")
        self.ketch(
            "builder", "prune", "-f"
        )  # the cache would keep the layers: nothing would have to be fetched
        self.ketch("pull", f"{remote}:latest")
        self.ketch("rmi", f"{remote}:latest")
        self.ketch("pull", f"{remote}@{digest}")
        self.serve(f"{remote}@{digest}", "again")
        self.ketch("logout", host)

    def run(self) -> None:
        """The whole story."""
        self.machine.start()
        self.ketch("version")
        self.base_image()
        self.build(self.base / "my-python-app")
        self.title("4. Run")
        self.serve("my-python-app", "web")
        with registry(self.base / "registry", users={USER: PASSWORD}) as host:
            self.travel(host)
        self.title("6. Nothing stays")


def fetch(url: str, seconds: float = 20) -> str:
    """The page, as soon as the application listens. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"{url} does not answer: {error}") from None
            time.sleep(0.05)


def main() -> int:
    """Run it; 0 when every step went well and nothing stayed."""
    if os.geteuid() != 0:
        print("demo: root is needed for namespaces", file=sys.stderr)
        return 1
    base = Path(tempfile.mkdtemp(prefix="ketch-demo-"))
    demo = Demo(base)
    try:
        demo.run()
    except (AssertionError, subprocess.TimeoutExpired) as error:
        print(f"\ndemo failed: {error}", file=sys.stderr)
        return 1
    finally:
        demo.machine.close()
        left = demo.machine.leftovers()
        shutil.rmtree(base, ignore_errors=True)
    if left:
        print("demo left behind: " + ", ".join(left), file=sys.stderr)
        return 1
    print(f"nothing left behind; {time.monotonic() - demo.started:.1f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
