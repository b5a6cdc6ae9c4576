"""Carries out a parsed template on plain JSON values. Pure."""

from __future__ import annotations

from typing import Any

from ketch.gotemplate import Action, Branch, Jump, Node, Operand, Pipe, TemplateError, Text, parse
from ketch.gotemplatefunctions import FUNCTIONS, UNTITLED
from ketch.gotemplatevalues import LISTS, MAPS, Nil, field, printed, truth


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def render(source: str, value: Any, *, header: bool = False) -> str:
    """`source` carried out on `value`. `header`: functions leave their argument alone, so that titles stay titles.

    Raises TemplateError.
    """
    return _Run(value, header).nodes(parse(source))


class _Run:
    """One execution: the variables in scope, and the dot."""

    def __init__(self, value: Any, header: bool) -> None:
        self._header = header
        self._dot = value
        self._variables: list[tuple[str, Any]] = [("$", value)]

    def nodes(self, nodes: tuple[Node, ...]) -> str:
        out = []
        for node in nodes:
            if isinstance(node, Text):
                out.append(node.text)
            elif isinstance(node, Action):
                value = self._pipe(node.pipe)
                if not node.pipe.names:
                    out.append(printed(value))
            elif isinstance(node, Jump):
                raise (_Break if node.kind == "break" else _Continue)("".join(out))
            else:
                out.append(self._branch(node))
        return "".join(out)

    def _branch(self, node: Branch) -> str:
        depth, dot = len(self._variables), self._dot
        try:
            if node.kind == "range":
                return self._range(node, depth)
            value = self._pipe(node.pipe)
            if not truth(value):
                return self.nodes(node.otherwise)
            if node.kind == "with":
                self._dot = value
            return self.nodes(node.body)
        finally:
            del self._variables[depth:]
            self._dot = dot

    def _range(self, node: Branch, depth: int) -> str:
        value = self._pipe(node.pipe._replace(names=()))
        pairs: list[tuple[Any, Any]]
        if isinstance(value, dict):
            pairs = sorted(value.items())
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs = [(at, at) for at in range(value)]
        elif value is None or isinstance(value, list | tuple | Nil):
            pairs = [] if value is None or isinstance(value, Nil) else list(enumerate(value))
        else:
            raise TemplateError(f"range can't iterate over {printed(value)}")
        if not pairs:
            return self.nodes(node.otherwise)
        out = []
        for key, item in pairs:
            del self._variables[depth:]
            names = node.pipe.names
            if len(names) == 1:
                self._variables.append((names[0], item))
            elif len(names) == 2:
                self._variables += [(names[0], key), (names[1], item)]
            self._dot = item
            try:
                out.append(self.nodes(node.body))
            except _Continue as jump:
                out.append(str(jump))
            except _Break as jump:
                out.append(str(jump))
                break
        return "".join(out)

    def _pipe(self, pipe: Pipe) -> Any:
        value: Any = None
        for at, command in enumerate(pipe.commands):
            value = self._command(command, (value,) if at else ())
        if len(pipe.names) > 1:
            raise TemplateError("template: :1: too many declarations in command")
        for name in pipe.names:
            if pipe.declares:
                self._variables.append((name, value))
            else:
                self._assign(name, value)
        return value

    def _assign(self, name: str, value: Any) -> None:
        for at in range(len(self._variables) - 1, -1, -1):
            if self._variables[at][0] == name:
                self._variables[at] = (name, value)
                return
        raise TemplateError(f'template: :1: undefined variable "{name}"')

    def _command(self, operands: tuple[Operand, ...], piped: tuple[Any, ...]) -> Any:
        first = operands[0]
        if first.kind == "function":
            return self._call(str(first.value), operands[1:], piped)
        value = self._value(first)
        if callable(value):
            return value(*[self._value(operand) for operand in operands[1:]], *piped)
        if len(operands) > 1 or piped:
            raise TemplateError("can't give argument to non-function")
        return value

    def _call(self, name: str, operands: tuple[Operand, ...], piped: tuple[Any, ...]) -> Any:
        if name in ("and", "or"):
            value: Any = None
            for at, operand in enumerate(operands):
                value = self._value(operand)
                if truth(value) == (name == "or") or (at == len(operands) - 1 and not piped):
                    return value
            return piped[0] if piped else value
        function = FUNCTIONS.get(name)
        if function is None:
            raise TemplateError(f'template: :1: function "{name}" not defined')
        arguments = [self._value(operand) for operand in operands] + list(piped)
        if self._header and name in UNTITLED:
            return next((one for one in arguments if isinstance(one, str)), "")
        try:
            return function(*arguments)
        except TemplateError:
            raise
        except TypeError as error:
            if "positional argument" in str(error):
                raise TemplateError(f"wrong number of args for {name}: got {len(arguments)}") from error
            raise TemplateError(f"error calling {name}: {error}") from error
        except (ValueError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise TemplateError(f"error calling {name}: {error}") from error

    def _value(self, operand: Operand) -> Any:
        if operand.kind == "literal":
            return operand.value
        if operand.kind == "function":
            return self._call(str(operand.value), (), ())
        if operand.kind == "dot":
            value = self._dot
        elif operand.kind == "variable":
            found = [kept for name, kept in reversed(self._variables) if name == operand.value]
            if not found:
                raise TemplateError(f'template: :1: undefined variable "{operand.value}"')
            value = found[0]
        else:
            assert isinstance(operand.value, Pipe)
            value = self._pipe(operand.value)
        inside = ""
        for name in operand.fields:
            value = field(value, name, inside)
            if value is None and not self._header:
                value = Nil("map[]" if name in MAPS else "[]" if name in LISTS else "<nil>")
            inside = name
        return value
