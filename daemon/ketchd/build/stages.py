"""Instructions as stages: what each is based on, which are needed for a target, which images that takes. Pure.

Source: Dockerfile reference, "Multi-stage builds", "Understand how ARG and FROM interact".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.build import instructions, lexer
from ketchd.build.expand import expand
from ketchd.build.instructions import Arg, Copy, From, Instruction, OnBuild, Run
from ketchd.build.lexer import Place, Source

SCRATCH = "scratch"
PROXIES = tuple(
    variant
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for variant in (name, name.lower())
)
# Read by builders themselves: given as build arguments they are never "not consumed".
CONTROL = frozenset(
    {"SOURCE_DATE_EPOCH", "BUILDKIT_SYNTAX", "BUILDKIT_INLINE_CACHE", "BUILDKIT_CACHE_MOUNT_NS", "BUILDKIT_MULTI_PLATFORM",
     "BUILDKIT_CONTEXT_KEEP_GIT_DIR", "BUILDKIT_SANDBOX_HOSTNAME", "BUILDKIT_BUILD_NAME", "BUILDKIT_DOCKERFILE_CHECK"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """What the client asks of a build, apart from the Dockerfile.

    build_args: None for a name without value. platform, host_platform: `linux/amd64`. extra_hosts: `name:address`.
    """

    build_args: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    platform: str = ""
    host_platform: str = "linux/amd64"
    network: str = "default"
    extra_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Base:
    """An image that a stage begins with or copies from. config, history: as in its JSON; layers: diff IDs base first."""

    image_id: str
    layers: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    architecture: str = "amd64"
    os: str = "linux"
    variant: str = ""
    author: str = ""

    @property
    def triggers(self) -> tuple[str, ...]:
        """ONBUILD instructions to carry out."""
        return tuple(self.config.get("OnBuild") or ())


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image that must be there before the plan can be made. platform: "" for any. by_flag: a `--from` names it, no FROM."""

    name: str
    platform: str
    place: Place
    by_flag: bool = False


@dataclass(frozen=True, slots=True)
class BaseRef:
    """What FROM names: an earlier stage, or an image (`scratch` for nothing)."""

    stage: int | None
    image: str
    platform: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM and what follows it."""

    index: int
    opening: From
    base: BaseRef
    body: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """Global ARGs, their values, and the stages."""

    source: Source
    global_args: tuple[Arg, ...]
    global_values: Mapping[str, str]
    stages: tuple[Stage, ...]

    def find(self, name: str, before: int) -> int | None:
        """The stage called `name` (or with that number) among those before one. Raises InvalidInput for a later one's name."""
        lowered = name.lower()
        for stage in reversed(self.stages[:before]):
            if stage.opening.name == lowered:
                return stage.index
        if name.isdigit():
            if int(name) < before:
                return int(name)
            itself = int(name) == before
            raise InvalidInput("refers to current build stage" if itself else f"invalid stage index {name}")
        for stage in self.stages[before:]:
            if stage.opening.name == lowered:
                raise InvalidInput(
                    f'cannot copy from stage "{name}", it needs to be defined before current stage '
                    f'"{self.stages[before].opening.name or before}"'
                )
        return None


def split(source: Source, parsed: Sequence[Instruction], options: Options) -> Dockerfile:
    """The Dockerfile's stages, FROM lines expanded. Raises InvalidInput."""
    global_args: list[Arg] = []
    values = {**platform_args(options)}
    openings: list[tuple[From, list[Instruction]]] = []
    for instruction in parsed:
        if isinstance(instruction, From):
            openings.append((instruction, []))
        elif openings:
            openings[-1][1].append(instruction)
        elif isinstance(instruction, Arg):
            global_args.append(instruction)
            values.update(_global_values(instruction, values, options, source.escape))
        else:
            raise instruction.place.fault("no build stage in current context")
    if not openings:
        raise InvalidInput(f"dockerfile contains no stages to build ({source.file})")
    stages: list[Stage] = []
    for index, (opening, body) in enumerate(openings):
        base = _base(opening, stages, values, source.escape)
        stages.append(Stage(index, opening, base, tuple(body)))
    return Dockerfile(source, tuple(global_args), values, tuple(stages))


def platform_args(options: Options) -> dict[str, str]:
    """TARGETPLATFORM and its relatives, build arguments of the same name applied."""
    found: dict[str, str] = {"TARGETSTAGE": options.target or "default"}
    for prefix, text in (
        ("TARGET", options.platform or options.host_platform),
        ("BUILD", options.host_platform),
    ):
        parts = [*text.split("/"), "", ""]
        found |= {
            f"{prefix}PLATFORM": text, f"{prefix}OS": parts[0], f"{prefix}ARCH": parts[1], f"{prefix}VARIANT": parts[2],
            f"{prefix}OSVERSION": "",
        }  # fmt: skip
    return {name: options.build_args.get(name) or value for name, value in found.items()}


def _global_values(arg: Arg, values: Mapping[str, str], options: Options, escape: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, default in arg.items:
        given = options.build_args.get(name)
        if given is not None:
            found[name] = given
        elif default is not None:
            found[name] = located(arg.place, default, values, escape)
    return found


def located(place: Place, text: str, values: Mapping[str, str], escape: str) -> str:
    """`expand` with the place in its fault."""
    try:
        return expand(text, values, escape)
    except InvalidInput as error:
        raise InvalidInput(place.locate(error.message)) from None


def _base(opening: From, before: Sequence[Stage], values: Mapping[str, str], escape: str) -> BaseRef:
    name = located(opening.place, opening.base, values, escape).strip()
    if not name:
        raise opening.place.fault(f"base name ({opening.base}) should not be blank")
    platform = located(opening.place, opening.platform, values, escape).strip().lower()
    if opening.platform and not platform:
        raise opening.place.fault(f"empty platform value from expression {opening.platform}")
    for stage in reversed(before):
        if stage.opening.name and stage.opening.name == name.lower():
            return BaseRef(stage.index, "", platform)
    return BaseRef(None, name, platform)


def target_index(dockerfile: Dockerfile, target: str) -> int:
    """The stage to build. Raises InvalidInput."""
    if not target:
        return len(dockerfile.stages) - 1
    names = {stage.opening.name: stage.index for stage in dockerfile.stages if stage.opening.name}
    if target.lower() in names:
        return names[target.lower()]
    if target.isdigit() and int(target) < len(dockerfile.stages):
        return int(target)
    near = get_close_matches(target.lower(), names, 1, 0.6)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InvalidInput(
        f"failed to reach build target {target} in Dockerfile: target stage {target!r} could not be found{hint}"
    )


def triggers(
    dockerfile: Dockerfile, stage: Stage, bases: Mapping[tuple[str, str], Base]
) -> list[Instruction]:
    """The instructions that the stage's base brings, an image or an earlier stage. Raises InvalidInput."""
    texts: Sequence[str] = ()
    if stage.base.stage is not None:
        body = dockerfile.stages[stage.base.stage].body
        texts = [instruction.trigger for instruction in body if isinstance(instruction, OnBuild)]
    elif (base := bases.get((stage.base.image, stage.base.platform))) is not None:
        texts = base.triggers
    found: list[Instruction] = []
    for trigger in texts:
        for instruction in instructions.parse(
            lexer.read(trigger, f"ONBUILD of {stage.base.image or stage.opening.base}")
        ):
            if isinstance(instruction, From) or instruction.text.upper().startswith(
                ("ONBUILD", "MAINTAINER")
            ):
                raise InvalidInput(
                    f"{instruction.text.split()[0].upper()} isn't allowed as an ONBUILD trigger ({instruction.place})"
                )
            found.append(instruction)
    return found


def sources_of(
    dockerfile: Dockerfile, stage: Stage, body: Sequence[Instruction]
) -> Iterator[tuple[Instruction, str, int | None]]:
    """(instruction, name, stage index or None for an image) of every `--from`. Raises InvalidInput."""
    for instruction in body:
        names: list[str] = []
        if isinstance(instruction, Copy) and instruction.from_:
            names = [instruction.from_]
        elif isinstance(instruction, Run):
            names = [mount.get("from") for mount in instruction.mounts if mount.get("from")]
        for name in names:
            try:
                yield instruction, name, dockerfile.find(name, stage.index)
            except InvalidInput as error:
                raise instruction.place.fault(f"invalid from flag value {name}: {error.message}") from None


def survey(
    dockerfile: Dockerfile, target: int, bases: Mapping[tuple[str, str], Base]
) -> tuple[list[int], list[Wanted]]:
    """The stages that the target needs, in order, and the images (name, platform) that are needed and not among `bases`.

    Triggers of an image that is not there yet may need more: ask again when it is.
    """
    needed: set[int] = set()
    wanted: dict[tuple[str, str], Wanted] = {}
    waiting = [target]
    while waiting:
        index = waiting.pop()
        if index in needed:
            continue
        needed.add(index)
        stage = dockerfile.stages[index]
        if stage.base.stage is not None:
            waiting.append(stage.base.stage)
        elif stage.base.image != SCRATCH:
            wanted[stage.base.image, stage.base.platform] = Wanted(
                stage.base.image, stage.base.platform, stage.opening.place
            )
        body = [*triggers(dockerfile, stage, bases), *stage.body]
        for instruction, name, source in sources_of(dockerfile, stage, body):
            if source is not None:
                waiting.append(source)
            else:
                wanted[name, ""] = Wanted(name, "", instruction.place, by_flag=True)
    return sorted(needed), [want for key, want in wanted.items() if key not in bases]
