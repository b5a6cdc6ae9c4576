"""The build as a graph: one node a step, edges from what a step needs. Pure: images' configs in, nodes out.

Stages that the target does not need are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ketch_wire.faults import InvalidInput
from ketchd.build import stages
from ketchd.build.evaluate import Scope
from ketchd.build.instructions import Instruction
from ketchd.build.lexer import Place
from ketchd.build.ops import BaseOp, CopyOp, Graph, MetaOp, Node, NoteOp, Op, RunOp, StageOp
from ketchd.build.stages import CONTROL, PROXIES, SCRATCH, Base, Dockerfile, Options, Stage

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of a container's config, not of an image's: dockerd's classic images carry them, ours do not pass them on.
_NOT_INHERITED = frozenset(
    ["Hostname", "Domainname", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce", "Image",
     "NetworkDisabled", "MacAddress", "OnBuild", "ArgsEscaped"]
)  # fmt: skip


def make_graph(dockerfile: Dockerfile, options: Options, bases: Mapping[tuple[str, str], Base]) -> Graph:
    """The graph for `options.target`. bases: (name, platform) -> image, every one that `stages.survey` wanted.

    Raises InvalidInput with the place.
    """
    return _Planner(dockerfile, options, bases).graph()


class _Planner:
    def __init__(
        self, dockerfile: Dockerfile, options: Options, bases: Mapping[tuple[str, str], Base]
    ) -> None:
        self._file = dockerfile
        self._options = options
        self._bases = bases
        self._nodes: list[Node] = []
        self._numbered = 0
        self._consumed: set[str] = {name for arg in dockerfile.global_args for name, _ in arg.items}
        self._last: dict[int, int] = {}  # stage -> its last node
        self._scopes: dict[int, Scope] = {}

    def graph(self) -> Graph:
        target = stages.target_index(self._file, self._options.target)
        needed, _ = stages.survey(self._file, target, self._bases)
        for arg in self._file.global_args:
            self._add(arg.place, arg.text, -1, NoteOp(), None, ())
        for index in needed:
            self._stage(self._file.stages[index])
        if self._options.labels:
            self._labels(target)
        unconsumed = tuple(
            name for name in sorted(self._options.build_args)
            if name not in self._consumed and name not in PROXIES and name not in CONTROL
            and name not in stages.platform_args(self._options)
        )  # fmt: skip
        warnings = tuple(f"{text} (line {number})" for number, text in self._file.source.warnings)
        return Graph(tuple(self._nodes), self._last[target], self._numbered, unconsumed, warnings)

    def _add(
        self, place: Place, text: str, stage: int, op: Op, scope: Scope | None, needs: tuple[int, ...],
        *, parent: int | None = None, numbered: bool = True,
    ) -> int:  # fmt: skip
        self._numbered += numbered
        every = tuple(sorted({*needs, *(() if parent is None else (parent,))}))
        node = Node(
            index=len(self._nodes), stage=stage, op=op, place=place, text=text,
            number=self._numbered if numbered else 0, needs=every, parent=parent,
            config=dict(scope.config) if scope else {}, author=scope.author if scope else "",
            shell=scope.shell if scope else ("/bin/sh", "-c"),
        )  # fmt: skip
        self._nodes.append(node)
        return node.index

    def _stage(self, stage: Stage) -> None:
        opening, base_ref = stage.opening, stage.base
        triggers = stages.triggers(self._file, stage, self._bases)
        parent: int | None = None
        op: Op
        if base_ref.stage is not None:
            parent, op = self._last[base_ref.stage], StageOp(len(triggers))
            before = self._scopes[base_ref.stage]
            inherited = {key: value for key, value in before.config.items() if key != "OnBuild"}
            scope = self._scope(inherited, before.author, before.args)
        else:
            base = None if base_ref.image == SCRATCH else self._bases[base_ref.image, base_ref.platform]
            op = self._base_op(base_ref.image, base, base_ref.platform, len(triggers))
            inherited = (
                {} if base is None else {k: v for k, v in base.config.items() if k not in _NOT_INHERITED}
            )
            env = list(inherited.get("Env") or ())
            if not any(entry.startswith("PATH=") for entry in env):
                inherited["Env"] = [*env, f"PATH={_DEFAULT_PATH}"]
            scope = self._scope(inherited, base.author if base else "", {})
        at = self._add(opening.place, opening.text, stage.index, op, scope, (), parent=parent)
        for instruction in triggers:
            at = self._step(stage, instruction, scope, at, numbered=False)
        for instruction in stage.body:
            at = self._step(stage, instruction, scope, at, numbered=True)
        self._last[stage.index] = at
        self._scopes[stage.index] = scope
        self._nodes[at] = replace(self._nodes[at], stage_end=True)

    def _scope(self, config: Mapping[str, object], author: str, args: Mapping[str, str]) -> Scope:
        return Scope(
            config,
            author,
            args,
            self._options,
            self._file.global_values,
            self._file.source.escape,
            self._consumed,
        )

    def _base_op(self, name: str, base: Base | None, platform: str, triggers: int) -> BaseOp:
        if base is not None:
            return BaseOp(name, base, base.architecture, base.os, base.variant, triggers)
        parts = [*(platform or self._options.platform or self._options.host_platform).split("/"), "", ""]
        return BaseOp(name, None, parts[1], parts[0], parts[2])

    def _step(
        self, stage: Stage, instruction: Instruction, scope: Scope, parent: int, *, numbered: bool
    ) -> int:
        shell = scope.shell
        op = scope.apply(instruction, self._source(stage, instruction))
        needs: list[int] = []
        if isinstance(op, CopyOp) and op.from_node is not None:
            needs.append(op.from_node)
        elif isinstance(op, RunOp):
            needs += [mount.from_node for mount in op.mounts if mount.from_node is not None]
        at = self._add(
            instruction.place,
            instruction.text,
            stage.index,
            op,
            scope,
            tuple(needs),
            parent=parent,
            numbered=numbered,
        )
        if not isinstance(op, MetaOp) or not instruction.text.upper().startswith("SHELL"):
            self._nodes[at] = replace(self._nodes[at], shell=shell)
        return at

    def _source(self, stage: Stage, instruction: Instruction) -> Callable[[str], tuple[int | None, str]]:
        def find(name: str) -> tuple[int | None, str]:
            try:
                found = self._file.find(name, stage.index)
            except InvalidInput as error:
                raise instruction.place.fault(f"invalid from flag value {name}: {error.message}") from None
            return (None, name) if found is None else (self._last[found], "")

        return find

    def _labels(self, target: int) -> None:
        """`--label` is one more LABEL step, as in dockerd."""
        scope, parent = self._scopes[target], self._last[target]
        pairs = dict(sorted(self._options.labels.items()))
        text = "LABEL" + "".join(f" {name}={value}" for name, value in pairs.items())
        place = Place("--label", 1, text)
        self._nodes[parent] = replace(self._nodes[parent], stage_end=False)
        at = self._add(place, text, target, scope.label(pairs), scope, (), parent=parent)
        self._nodes[at] = replace(self._nodes[at], stage_end=True)
        self._last[target] = at
