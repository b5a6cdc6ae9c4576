"""Go's text/template, as much of it as `--format` needs: parsed into nodes. Pure. Carried out by `gotemplaterun`."""

from __future__ import annotations

import re
from typing import NamedTuple


class TemplateError(ValueError):
    """The template is wrong, or does not fit the value."""


class Token(NamedTuple):
    """kind: `word`, `field` (.A.B), `variable` ($x.A), `string`, `number`, or the sign itself."""

    kind: str
    text: str


class Text(NamedTuple):
    """Copied as it is."""

    text: str


class Pipe(NamedTuple):
    """A pipeline: what it assigns to, and its commands, each a list of operands. declares: `:=`, not `=`."""

    names: tuple[str, ...]
    declares: bool
    commands: tuple[tuple[Operand, ...], ...]


class Operand(NamedTuple):
    """One operand. kind: `function`, `literal`, `dot`, `variable`, `pipe`. fields: the `.A.B` behind it."""

    kind: str
    value: object
    fields: tuple[str, ...] = ()


class Action(NamedTuple):
    """`{{pipe}}`: its value is printed, unless it assigns."""

    pipe: Pipe


class Branch(NamedTuple):
    """`if`, `with` or `range`."""

    kind: str
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


class Jump(NamedTuple):
    """`break` or `continue`."""

    kind: str


Node = Text | Action | Branch | Jump

# What may be called; one that is not here is refused before anything is asked of the engine.
FUNCTIONS = frozenset(
    """and eq ge gt html index join js json le len lower lt ne not or pad print printf println slice split title truncate upper
    urlquery""".split()
)
WORDS = frozenset(("if", "with", "range", "else", "end", "break", "continue"))


def parse(source: str) -> tuple[Node, ...]:
    """The nodes of `source`. Raises TemplateError."""
    return _Parser(split(source)).whole()


def split(source: str) -> list[Text | list[Token]]:
    """Text and actions in turn, comments left out, `{{-` and `-}}` carried out."""
    parts: list[Text | list[Token]] = []
    at = 0
    trim = False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        if trim:
            text = text.lstrip(" \t\r\n")
        if start < 0:
            if text:
                parts.append(Text(text))
            return parts
        begin = start + 2
        if source[begin : begin + 1] == "-" and source[begin + 1 : begin + 2].isspace():
            text, begin = text.rstrip(" \t\r\n"), begin + 1
        if text:
            parts.append(Text(text))
        if source[begin:].lstrip().startswith("/*"):
            end = source.find("*/", begin)
            close = source.find("}}", end)
            if end < 0 or close < 0:
                raise TemplateError("template: :1: unclosed comment")
            trim, at = source[close - 1] == "-", close + 2
            continue
        tokens, at, trim = _tokens(source, begin)
        parts.append(tokens)


def _tokens(source: str, at: int) -> tuple[list[Token], int, bool]:
    """The tokens up to `}}`, where it ends, and whether it trims what follows."""
    tokens: list[Token] = []
    while True:
        if at >= len(source):
            raise TemplateError("template: :1: unclosed action")
        letter = source[at]
        if source.startswith("}}", at):
            return tokens, at + 2, False
        if letter == "-" and source.startswith("-}}", at) and source[at - 1].isspace():
            return tokens, at + 3, True
        if letter.isspace():
            at += 1
            # A space ends an operand: `index .A .B` is not `.A.B`.
            if tokens and tokens[-1].kind != " ":
                tokens.append(Token(" ", " "))
        elif letter in "\"`'":
            end = at + 1
            while end < len(source) and source[end] != letter:
                end += 2 if source[end] == "\\" and letter != "`" else 1
            if end >= len(source):
                raise TemplateError("template: :1: unterminated quoted string")
            tokens.append(Token("string", _unquote(source[at : end + 1])))
            at = end + 1
        elif source.startswith(":=", at):
            tokens.append(Token(":=", ":="))
            at += 2
        elif letter in "()|,=":
            tokens.append(Token(letter, letter))
            at += 1
        elif letter.isalnum() or letter in "._$+-":
            end = at + 1
            while end < len(source) and (source[end].isalnum() or source[end] in "._"):
                end += 1
            tokens.append(_word(source[at:end]))
            at = end
        else:
            raise TemplateError(f"template: :1: unexpected {letter!r} in command")


# Source: Go's language specification, rune literals.
ESCAPED = re.compile(
    r"\\(?:u(?P<hex>[0-9a-fA-F]{4})|U(?P<long>0010[0-9a-fA-F]{4}|000[0-9a-fA-F]{5})|x(?P<byte>[0-9a-fA-F]{2})"
    r"|(?P<octal>[0-3][0-7]{2})|(?P<letter>.))",
    re.DOTALL,
)
ESCAPES = dict(zip("abfnrtv\\\"'", "\a\b\f\n\r\t\v\\\"'", strict=True))


def _unquote(text: str) -> str:
    if text[0] == "`":
        return text[1:-1]
    body = text[1:-1]
    if "\\" not in body:
        return body

    def meant(found: re.Match[str]) -> str:
        digits = found["hex"] or found["long"] or found["byte"]
        if digits:
            return chr(int(digits, 16))
        if found["octal"]:
            return chr(int(found["octal"], 8))
        if found["letter"] not in ESCAPES:
            raise TemplateError(f"template: :1: invalid syntax: {text}")
        return ESCAPES[found["letter"]]

    return ESCAPED.sub(meant, body)


def _word(text: str) -> Token:
    if text[0].isdigit() or (text[0] in "+-" and text[1:2].isdigit()):
        return Token("number", text)
    if text[0] == ".":
        return Token("field", text)
    if text[0] == "$":
        return Token("variable", text)
    if not (text[0].isalpha() or text[0] == "_"):
        raise TemplateError(f"template: :1: unexpected {text!r} in command")
    return Token("word", text)


class _Parser:
    """Actions into nodes."""

    def __init__(self, parts: list[Text | list[Token]]) -> None:
        self._parts = parts
        self._at = 0
        self._ranges = 0

    def whole(self) -> tuple[Node, ...]:
        nodes, ended = self._list(0)
        if ended:
            raise TemplateError(f"template: :1: unexpected {{{{{ended[0].text}}}}}")
        return nodes

    def _list(self, depth: int) -> tuple[tuple[Node, ...], list[Token]]:
        """Nodes up to `else` or `end`, and that action (empty at the end of the template)."""
        nodes: list[Node] = []
        while self._at < len(self._parts):
            part = self._parts[self._at]
            self._at += 1
            if isinstance(part, Text):
                nodes.append(part)
                continue
            tokens = _stripped(part)
            if not tokens:
                raise TemplateError("template: :1: missing value for command")
            word = tokens[0].text if tokens[0].kind == "word" else ""
            if word in ("else", "end"):
                return tuple(nodes), tokens
            if word in ("break", "continue") and len(tokens) == 1:
                if not self._ranges:
                    raise TemplateError(f"template: :1: {{{{{word}}}}} outside {{{{range}}}}")
                nodes.append(Jump(word))
            elif word in ("if", "with", "range"):
                if depth > 100:
                    raise TemplateError("template: :1: nested too deep")
                nodes.append(self._branch(word, _stripped(tokens[1:]), depth + 1))
            else:
                nodes.append(Action(_pipe(tokens)))
        return tuple(nodes), []

    def _branch(self, kind: str, tokens: list[Token], depth: int) -> Branch:
        pipe = _pipe(tokens)
        self._ranges += kind == "range"
        body, ended = self._list(depth)
        self._ranges -= kind == "range"
        otherwise: tuple[Node, ...] = ()
        if ended and ended[0].text == "else":
            rest = _stripped(ended[1:])
            if rest and rest[0].text in ("if", "with"):
                return Branch(kind, pipe, body, (self._branch(rest[0].text, _stripped(rest[1:]), depth + 1),))
            if rest:
                raise TemplateError("template: :1: unexpected words in {{else}}")
            otherwise, ended = self._list(depth)
        if not ended or ended[0].text != "end":
            raise TemplateError("template: :1: unexpected EOF")
        return Branch(kind, pipe, body, otherwise)


def _stripped(tokens: list[Token]) -> list[Token]:
    start, end = 0, len(tokens)
    while start < end and tokens[start].kind == " ":
        start += 1
    while end > start and tokens[end - 1].kind == " ":
        end -= 1
    return tokens[start:end]


def _pipe(tokens: list[Token]) -> Pipe:
    names: tuple[str, ...] = ()
    declares = False
    for at, token in enumerate(tokens):
        if token.kind in (":=", "="):
            before = [one for one in tokens[:at] if one.kind not in (" ", ",")]
            if not before or any(one.kind != "variable" for one in before):
                raise TemplateError(f"template: :1: unexpected {token.text!r} in command")
            names, declares = tuple(one.text for one in before), token.kind == ":="
            tokens = _stripped(tokens[at + 1 :])
            break
    commands = tuple(_command(part) for part in _divide(tokens))
    return Pipe(names, declares, commands)


def _divide(tokens: list[Token]) -> list[list[Token]]:
    """The commands of a pipeline: split at `|` outside of brackets."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.kind == "(") - (token.kind == ")")
        if token.kind == "|" and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [_stripped(part) for part in parts]


def _command(tokens: list[Token]) -> tuple[Operand, ...]:
    if not tokens:
        raise TemplateError("template: :1: missing value for command")
    operands: list[Operand] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token.kind == " ":
            continue
        if token.kind == "(":
            end = _closing(tokens, at)
            inner = Operand("pipe", _pipe(_stripped(tokens[at:end])))
            at = end + 1
            if at < len(tokens) and tokens[at].kind == "field":
                inner = inner._replace(fields=_fields(tokens[at].text))
                at += 1
            operands.append(inner)
        else:
            operands.append(_operand(token))
    return tuple(operands)


def _closing(tokens: list[Token], at: int) -> int:
    depth = 1
    for place in range(at, len(tokens)):
        depth += (tokens[place].kind == "(") - (tokens[place].kind == ")")
        if depth == 0:
            return place
    raise TemplateError("template: :1: unclosed left paren")


def _fields(text: str) -> tuple[str, ...]:
    names = text.split(".")[1:]
    if names == [""]:
        return ()
    if "" in names:
        raise TemplateError(f"template: :1: unexpected <.> in operand {text!r}")
    return tuple(names)


def _operand(token: Token) -> Operand:
    if token.kind == "field":
        return Operand("dot", None, _fields(token.text))
    if token.kind == "variable":
        name, dot, rest = token.text.partition(".")
        return Operand("variable", name, _fields(dot + rest) if dot else ())
    if token.kind == "string":
        return Operand("literal", token.text)
    if token.kind == "number":
        try:
            return Operand("literal", float(token.text) if "." in token.text else int(token.text, 0))
        except ValueError:
            raise TemplateError(f"template: :1: bad number syntax: {token.text!r}") from None
    if token.kind == "word":
        if token.text in ("true", "false", "nil"):
            return Operand("literal", {"true": True, "false": False, "nil": None}[token.text])
        name, dot, _ = token.text.partition(".")
        if dot or name in WORDS:
            raise TemplateError(f"template: :1: unexpected <{token.text}> in operand")
        if name not in FUNCTIONS:
            raise TemplateError(f'template: :1: function "{name}" not defined')
        return Operand("function", name)
    raise TemplateError(f"template: :1: unexpected {token.text!r} in operand")
