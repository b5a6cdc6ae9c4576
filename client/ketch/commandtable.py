"""Every command by name, and the module that knows it: read at start, so that only the one that runs is imported."""

from __future__ import annotations

from typing import NamedTuple

COMMON, MANAGEMENT, PLAIN = "Common Commands", "Management Commands", "Commands"


class Entry(NamedTuple):
    """One command. `paths`: how it is typed, the first of each group of alternatives being its own name.

    One without a summary is in no list: people do not type it.
    """

    key: str
    module: str
    group: str
    paths: str
    summary: str

    def spellings(self) -> list[tuple[str, str]]:
        """(as typed, own name) for every way to type it: `container ls|list|ps` is three."""
        found = []
        for path in self.paths.split(", "):
            parent, _, words = path.rpartition(" ")
            names = words.split("|")
            found += [(f"{parent} {name}".strip(), f"{parent} {names[0]}".strip()) for name in names]
        return found


GROUPS = {
    "builder": "Manage builds",
    "container": "Manage containers",
    "context": "Manage contexts",
    "image": "Manage images",
    "network": "Manage networks",
    "system": "Manage ketch",
    "volume": "Manage volumes",
}


def _member(module: str, paths: str, summary: str) -> Entry:
    """One that is typed with its group alone."""
    return Entry(paths.partition("|")[0], module, "", paths, summary)


TABLE = (
    Entry("run", "run", COMMON, "container run, run", "Create and run a new container from an image"),
    Entry("exec", "execute", COMMON, "container exec, exec", "Execute a command in a running container"),
    Entry("ps", "listing", COMMON, "container ls|list|ps, ps", "List containers"),
    Entry("build", "build", COMMON, "image build, build, builder build", "Build an image from a Dockerfile"),
    Entry("pull", "registry", COMMON, "image pull, pull", "Download an image from a registry"),
    Entry("push", "registry", COMMON, "image push, push", "Upload an image to a registry"),
    Entry("images", "images", COMMON, "image ls|list, images", "List images"),
    Entry("login", "registry", COMMON, "login", "Authenticate to a registry"),
    Entry("logout", "registry", COMMON, "logout", "Log out from a registry"),
    Entry("search", "registry", COMMON, "search", "Search Docker Hub for images"),
    Entry("version", "version", COMMON, "version", "Show the ketch version information"),
    Entry("info", "system", COMMON, "system info, info", "Display system-wide information"),
    Entry(
        "attach",
        "execute",
        PLAIN,
        "container attach, attach",
        "Attach local standard input, output, and error streams to a running container",
    ),
    Entry(
        "commit",
        "containers",
        PLAIN,
        "container commit, commit",
        "Create a new image from a container's changes",
    ),
    Entry(
        "cp",
        "copies",
        PLAIN,
        "container cp, cp",
        "Copy files/folders between a container and the local filesystem",
    ),
    Entry(
        "completion", "completion", PLAIN, "completion", "Print the script that completes commands in a shell"
    ),
    Entry("create", "run", PLAIN, "container create, create", "Create a new container"),
    Entry(
        "diff",
        "containers",
        PLAIN,
        "container diff, diff",
        "Inspect changes to files or directories on a container's filesystem",
    ),
    Entry("events", "system", PLAIN, "system events, events", "Get real time events from the server"),
    Entry(
        "export",
        "archives",
        PLAIN,
        "container export, export",
        "Export a container's filesystem as a tar archive",
    ),
    Entry("history", "images", PLAIN, "image history, history", "Show the history of an image"),
    Entry(
        "import",
        "archives",
        PLAIN,
        "image import, import",
        "Import the contents from a tarball to create a filesystem image",
    ),
    Entry("inspect", "inspect", PLAIN, "inspect", "Return low-level information on ketch objects"),
    Entry("kill", "containers", PLAIN, "container kill, kill", "Kill one or more running containers"),
    Entry("load", "archives", PLAIN, "image load, load", "Load an image from a tar archive or STDIN"),
    Entry("logs", "logs", PLAIN, "container logs, logs", "Fetch the logs of a container"),
    Entry(
        "pause",
        "containers",
        PLAIN,
        "container pause, pause",
        "Pause all processes within one or more containers",
    ),
    Entry(
        "port",
        "containers",
        PLAIN,
        "container port, port",
        "List port mappings or a specific mapping for the container",
    ),
    Entry("rename", "containers", PLAIN, "container rename, rename", "Rename a container"),
    Entry("restart", "containers", PLAIN, "container restart, restart", "Restart one or more containers"),
    Entry("rm", "containers", PLAIN, "container rm|remove, rm", "Remove one or more containers"),
    Entry("rmi", "images", PLAIN, "image rm|remove, rmi", "Remove one or more images"),
    Entry(
        "save",
        "archives",
        PLAIN,
        "image save, save",
        "Save one or more images to a tar archive (streamed to STDOUT by default)",
    ),
    Entry("start", "run", PLAIN, "container start, start", "Start one or more stopped containers"),
    Entry(
        "stats",
        "stats",
        PLAIN,
        "container stats, stats",
        "Display a live stream of container(s) resource usage statistics",
    ),
    Entry("stop", "containers", PLAIN, "container stop, stop", "Stop one or more running containers"),
    Entry("tag", "images", PLAIN, "image tag, tag", "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE"),
    Entry("top", "containers", PLAIN, "container top, top", "Display the running processes of a container"),
    Entry(
        "unpause",
        "containers",
        PLAIN,
        "container unpause, unpause",
        "Unpause all processes within one or more containers",
    ),
    Entry(
        "update",
        "update",
        PLAIN,
        "container update, update",
        "Update configuration of one or more containers",
    ),
    Entry(
        "wait",
        "containers",
        PLAIN,
        "container wait, wait",
        "Block until one or more containers stop, then print their exit codes",
    ),
    _member("inspect", "container inspect", "Display detailed information on one or more containers"),
    _member("context", "context create", "Create a context"),
    _member("context", "context export", "Export a context to a tar archive FILE or a tar stream on STDOUT."),
    _member("context", "context import", "Import a context from a tar or zip file"),
    _member("context", "context inspect", "Display detailed information on one or more contexts"),
    _member("context", "context ls|list", "List contexts"),
    _member("context", "context rm|remove", "Remove one or more contexts"),
    _member("context", "context show", "Print the name of the current context"),
    _member("context", "context update", "Update a context"),
    _member("context", "context use", "Set the current context"),
    _member("prune", "container prune", "Remove all stopped containers"),
    _member("bootstrap", "image bootstrap", "Make a base image with the distribution's own tools"),
    _member("inspect", "image inspect", "Display detailed information on one or more images"),
    _member("prune", "image prune", "Remove unused images"),
    _member("networks", "network connect", "Connect a container to a network"),
    _member("networks", "network create", "Create a network"),
    _member("networks", "network disconnect", "Disconnect a container from a network"),
    _member("inspect", "network inspect", "Display detailed information on one or more networks"),
    _member("networks", "network ls|list", "List networks"),
    _member("prune", "network prune", "Remove all unused networks"),
    _member("networks", "network rm|remove", "Remove one or more networks"),
    _member("volumes", "volume create", "Create a volume"),
    _member("inspect", "volume inspect", "Display detailed information on one or more volumes"),
    _member("volumes", "volume ls|list", "List volumes"),
    _member("prune", "volume prune", "Remove unused local volumes"),
    _member("volumes", "volume rm|remove", "Remove one or more volumes"),
    _member("diskusage", "system df", "Show disk usage"),
    _member("dialstdio", "system dial-stdio", ""),
    _member("fsck", "system fsck", "Check what is stored against its digests"),
    _member("gc", "system gc", "Delete what the engine can do without"),
    _member("prune", "system prune", "Remove unused data"),
    _member("prune", "builder prune", "Remove build cache"),
)


def find(path: str) -> tuple[Entry, str] | None:
    """The command typed as `path`, and its own name there."""
    for entry in TABLE:
        if path in entry.paths or "|" in entry.paths:
            for typed, own in entry.spellings():
                if typed == path:
                    return entry, own
    return None


def members(group: str) -> list[tuple[str, str]]:
    """(name, summary) of the commands below `group`, by name."""
    found = {}
    for entry in TABLE:
        for _, own in entry.spellings():
            if own.startswith(group + " ") and entry.summary:
                found[own[len(group) + 1 :]] = entry.summary
    return sorted(found.items())
