"""One stage's instructions carried out on its config: expansion, ENV and ARG scope, what each step is to do. Pure.

Source: Dockerfile reference; wordings of dockerd's dispatchers.
"""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any

from ketch_wire.faults import InvalidInput, Unsupported
from ketchd.build import instructions as ins
from ketchd.build.expand import expand_body, expand_words
from ketchd.build.flags import MountFlag
from ketchd.build.lexer import Place
from ketchd.build.ops import CopyOp, MetaOp, MountOp, Op, RunOp, WorkdirOp
from ketchd.build.quote import go_quote
from ketchd.build.stages import PROXIES, Options, located

DEFAULT_SHELL = ("/bin/sh", "-c")
_URL = re.compile(r"https?://", re.IGNORECASE)
_GIT = re.compile(r"(?:git://|ssh://|git@)|https?://[^?#]*\.git(?:[#?].*)?$", re.IGNORECASE)
_SIGNAL = re.compile(r"(?:SIG)?(?:HUP|INT|QUIT|ILL|TRAP|ABRT|IOT|BUS|FPE|KILL|USR1|SEGV|USR2|PIPE|ALRM|TERM|STKFLT|CHLD|CLD|CONT|"
                     r"STOP|TSTP|TTIN|TTOU|URG|XCPU|XFSZ|VTALRM|PROF|WINCH|IO|POLL|PWR|SYS|RTMIN(?:\+\d+)?|RTMAX(?:-\d+)?)")  # fmt: skip
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_SIZE = re.compile(r"(\d+)(?:([kmgt])i?)?b?", re.IGNORECASE)


class Scope:
    """A stage's config and arguments while its instructions are read one after the other."""

    def __init__(
        self, config: Mapping[str, Any], author: str, args: Mapping[str, str], options: Options,
        global_values: Mapping[str, str], escape: str, consumed: set[str],
    ) -> None:  # fmt: skip
        self.config: dict[str, Any] = copy.deepcopy(dict(config))
        self.author = author
        self.args: dict[str, str] = dict(args)
        self._options = options
        self._globals = global_values
        self._escape = escape
        self._consumed = consumed
        self._cmd_set = False

    @property
    def shell(self) -> tuple[str, ...]:
        """What shell forms are wrapped in."""
        return tuple(self.config.get("Shell") or DEFAULT_SHELL)

    @property
    def env(self) -> dict[str, str]:
        """ENV by name."""
        return dict(entry.partition("=")[::2] for entry in self.config.get("Env") or ())

    def apply(self, instruction: ins.Instruction, source: Callable[[str], tuple[int | None, str]]) -> Op:
        """Change the config as `instruction` says; what is to be done besides. Raises InvalidInput with the place.

        source: the node or image that a `--from` means.
        """
        self._values = {**self.args, **self.env}
        self._place = instruction.place
        match instruction:
            case ins.Run():
                return self._run(instruction, source)
            case ins.Copy():
                return self._copy(instruction, source)
            case ins.Arg():
                return self._arg(instruction)
            case ins.Command():
                return self._command(instruction)
            case ins.Pairs(keyword="ENV"):
                return self._set_env(instruction)
            case ins.Pairs():
                pairs = [(self._expand(name), self._expand(value)) for name, value in instruction.pairs]
                return self.label(dict(pairs))
            case ins.Healthcheck():
                return self._healthcheck(instruction)
            case ins.OnBuild():
                self.config["OnBuild"] = [*(self.config.get("OnBuild") or ()), instruction.trigger]
                return MetaOp(f"ONBUILD {instruction.trigger}")
            case ins.Words():
                return self._word_ops(instruction)
        raise instruction.place.fault(f"{instruction.text.split()[0]} cannot stand here")

    def label(self, pairs: Mapping[str, str]) -> MetaOp:
        """LABEL, also for `--label`."""
        if any(not name for name in pairs):
            raise self._place.fault("LABEL names can not be blank")
        self.config["Labels"] = _sorted({**(self.config.get("Labels") or {}), **pairs})
        return MetaOp("LABEL" + "".join(f" {name}={value}" for name, value in pairs.items()))

    def _expand(self, text: str) -> str:
        return located(self._place, text, self._values, self._escape)

    def _arg(self, instruction: ins.Arg) -> Op:
        shown = []
        for name, default in instruction.items:
            self._consumed.add(name)
            given = self._options.build_args.get(name)
            value = given if given is not None else None if default is None else self._expand(default)
            if value is None and default is None:
                value = self._globals.get(name)
            if value is not None:
                self.args[name] = value
            shown.append(name if default is None else f"{name}={self._expand(default)}")
        return MetaOp("ARG " + " ".join(shown))

    def _command(self, instruction: ins.Command) -> Op:
        argv = [*(self.shell if instruction.is_shell else ()), *instruction.argv]
        if instruction.keyword == "CMD":
            self.config["Cmd"] = argv
            self._cmd_set = True
        else:
            self.config["Entrypoint"] = argv
            if not self._cmd_set:
                self.config.pop("Cmd", None)
        return MetaOp(f"{instruction.keyword} {_quoted(argv)}")

    def _set_env(self, instruction: ins.Pairs) -> Op:
        env = list(self.config.get("Env") or ())
        shown = "ENV"
        for name, value in [(self._expand(name), self._expand(value)) for name, value in instruction.pairs]:
            if not name:
                raise self._place.fault("ENV names can not be blank")
            entry = f"{name}={value}"
            shown += " " + entry
            at = next((i for i, known in enumerate(env) if known.partition("=")[0] == name), None)
            if at is None:
                env.append(entry)
            else:
                env[at] = entry
        self.config["Env"] = env
        return MetaOp(shown)

    def _healthcheck(self, given: ins.Healthcheck) -> Op:
        check: dict[str, Any] = {"Test": list(given.test)}
        for key, value in (
            ("Interval", given.interval_ns), ("Timeout", given.timeout_ns), ("StartPeriod", given.start_period_ns),
            ("StartInterval", given.start_interval_ns), ("Retries", given.retries),
        ):  # fmt: skip
            if value:
                check[key] = value
        self.config["Healthcheck"] = check
        times = [_go_duration(ns) for ns in (given.interval_ns, given.timeout_ns, given.start_period_ns)]
        return MetaOp(
            f'HEALTHCHECK &{{{_quoted(given.test)} "{times[0]}" "{times[1]}" "{times[2]}" \'\\x{given.retries:02x}\'}}'
        )

    def _word_ops(self, instruction: ins.Words) -> Op:
        keyword, first = instruction.keyword, instruction.words[0]
        if keyword == "MAINTAINER":
            self.author = first
            return MetaOp(f"MAINTAINER {first}")
        if keyword == "SHELL":
            self.config["Shell"] = list(instruction.words)
            return MetaOp(f"SHELL [{' '.join(instruction.words)}]")
        if keyword == "USER":
            self.config["User"] = self._expand(first)
            return MetaOp(f"USER {self.config['User']}")
        if keyword == "STOPSIGNAL":
            signal = self._expand(first)
            if not (signal.isdigit() and 0 < int(signal) < 65) and not _SIGNAL.fullmatch(signal.upper()):
                raise self._place.fault(f"invalid signal: {signal}")
            self.config["StopSignal"] = signal
            return MetaOp(f"STOPSIGNAL {signal}")
        if keyword == "VOLUME":
            volumes = [self._expand(word) for word in instruction.words]
            if any(not volume for volume in volumes):
                raise self._place.fault("VOLUME specified can not be an empty string")
            known = self.config.get("Volumes") or {}
            self.config["Volumes"] = _sorted({**known, **{volume: {} for volume in volumes}})
            return MetaOp(f"VOLUME [{' '.join(volumes)}]")
        if keyword == "EXPOSE":
            return self._expose(instruction)
        path = self._expand(first)
        if not path:
            raise self._place.fault("cannot normalize nothing")
        path = _clean(posixpath.join(self.config.get("WorkingDir") or "/", path))
        self.config["WorkingDir"] = path
        return WorkdirOp(path, f"WORKDIR {path}")

    def _expose(self, instruction: ins.Words) -> Op:
        ports: list[str] = []
        for word in instruction.words:
            try:
                found = expand_words(word, self._values, self._escape)
            except InvalidInput as error:
                raise InvalidInput(self._place.locate(error.message)) from None
            for text in found:
                ports += _ports(self._place, text)
        known = self.config.get("ExposedPorts") or {}
        self.config["ExposedPorts"] = _sorted({**known, **{port: {} for port in ports}})
        return MetaOp(
            "EXPOSE " + " ".join(sorted(set(ports), key=lambda port: (int(port.split("/")[0]), port)))
        )

    def _run(self, instruction: ins.Run, source: Callable[[str], tuple[int | None, str]]) -> Op:
        argv: tuple[str, ...] = instruction.argv
        script = ""
        if instruction.script is not None:
            if instruction.script.content.startswith("#!"):
                argv, script = (f"/dev/pipes/{instruction.script.name}",), instruction.script.content
            else:
                argv = (*self.shell, instruction.script.content)
        elif instruction.is_shell:
            argv = (*self.shell, *argv)
        elif not argv:
            # `RUN []`: what a container of the image would run. Source: moby withEntrypointOverride, merge
            argv = tuple(self.config.get("Entrypoint") or self.config.get("Cmd") or ())
            if not argv:
                raise self._place.fault("no command specified")
        env = self.env
        names = {name for name in self.args if name not in env}
        proxies = [
            f"{name}={value}" for name in PROXIES
            if (value := self._options.build_args.get(name)) is not None and name not in self.args and name not in env
        ]  # fmt: skip
        return RunOp(
            argv=argv,
            env=tuple(self.config.get("Env") or ()),
            args=tuple(sorted(f"{name}={self.args[name]}" for name in names)),
            proxies=tuple(proxies),
            cwd=self.config.get("WorkingDir") or "/",
            user=self.config.get("User") or "",
            network=instruction.network or self._options.network,
            extra_hosts=self._options.extra_hosts,
            mounts=tuple(self._mount(mount, source) for mount in instruction.mounts),
            script=script,
        )

    def _mount(self, flag: MountFlag, source: Callable[[str], tuple[int | None, str]]) -> MountOp:
        target = self._expand(flag.get("target"))
        identity = self._expand(flag.get("id") or (flag.get("source") if flag.type == "secret" else ""))
        if flag.type == "secret":
            identity = identity or posixpath.basename(target)
            target = target or f"/run/secrets/{identity}"
        elif flag.type == "ssh":
            identity = identity or "default"
            target = target or "/run/buildkit/ssh_agent.0"
        target = _clean(posixpath.join(self.config.get("WorkingDir") or "/", target))
        if target == "/":
            raise self._place.fault('invalid mount target "/"')
        node, image = source(flag.get("from")) if flag.get("from") else (None, "")
        size = self._expand(flag.get("size"))
        if size and not _SIZE.fullmatch(size):
            raise self._place.fault(f"invalid size: '{size}'")
        return MountOp(
            type=flag.type,
            target=target,
            source=_clean("/" + self._expand(flag.get("source"))) if flag.type in ("bind", "cache") else "/",
            from_node=node,
            from_image=image,
            writable=flag.flag("rw") if flag.type == "bind" else not flag.flag("ro"),
            id=identity or (target if flag.type == "cache" else ""),
            mode=int(flag.get("mode", "0755" if flag.type == "cache" else "0400"), 8),
            uid=int(flag.get("uid", "0")),
            gid=int(flag.get("gid", "0")),
            size=_bytes(size),
            sharing=flag.get("sharing", "shared"),
            required=flag.flag("required"),
        )

    def _copy(self, instruction: ins.Copy, source: Callable[[str], tuple[int | None, str]]) -> Op:
        keyword = instruction.keyword
        given = [self._expand(word) for word in instruction.sources]
        for word in given:
            if _GIT.match(word):
                if keyword == "COPY":
                    raise self._place.fault("source can't be a git ref for COPY")
                raise Unsupported(self._place.locate(f"ADD of a git repository is not supported: {word}"))
        urls = tuple(word for word in given if _URL.match(word))
        if urls and keyword == "COPY":
            raise self._place.fault("source can't be a URL for COPY")
        if instruction.checksum:
            if len(given) > 1:
                raise self._place.fault("checksum can't be specified for multiple sources")
            if not urls:
                raise self._place.fault("checksum requires HTTP(S) or Git sources")
        shown = self._expand(instruction.destination)
        if not shown:
            raise self._place.fault(f"{keyword} requires a destination that is not blank")
        files = []
        for heredoc in instruction.heredocs:
            content = heredoc.content
            if heredoc.expand:
                try:
                    content = expand_body(content, self._values, self._escape)
                except InvalidInput as error:
                    raise InvalidInput(self._place.locate(error.message)) from None
            files.append((heredoc.name, content))
        node, image = source(instruction.from_) if instruction.from_ else (None, "")
        return CopyOp(
            keyword=keyword,
            sources=tuple(word for word in given if not _URL.match(word)),
            destination=self._destination(shown),
            shown_destination=shown,
            urls=urls,
            files=tuple(files),
            from_node=node,
            from_image=image,
            chown=self._expand(instruction.chown),
            chmod=self._chmod(self._expand(instruction.chmod)),
            exclude=instruction.exclude,
            link=instruction.link,
            unpack=keyword == "ADD" and instruction.unpack is not False,
            unpack_urls=bool(instruction.unpack),
            checksum=self._expand(instruction.checksum),
        )

    def _destination(self, shown: str) -> str:
        path = _clean(posixpath.join(self.config.get("WorkingDir") or "/", shown))
        is_directory = shown.endswith(("/", "/.", "/..")) or shown in (".", "..")
        return path + "/" if is_directory and path != "/" else path

    def _chmod(self, text: str) -> int | None:
        if not text:
            return None
        if not re.fullmatch(r"[0-7]{1,5}", text) or int(text, 8) > 0o7777:
            raise self._place.fault(
                f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
            )
        return int(text, 8)


def _clean(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/") if path != "/" else "/"


def _quoted(argv: list[str] | tuple[str, ...]) -> str:
    """Go's %q of a list: `["a" "b"]`."""
    return "[" + " ".join(go_quote(word) for word in argv) + "]"


def _go_duration(ns: int) -> str:
    """Go's Duration.String for whole milliseconds and more."""
    if not ns:
        return "0s"
    seconds, rest = divmod(ns, 10**9)
    if not seconds:
        return f"{ns / 10**6:g}ms"
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    text = f"{seconds}{fraction}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _sorted(entries: Mapping[str, Any]) -> dict[str, Any]:
    """As Go writes a map: the order of the Dockerfile's words makes no other image."""
    return dict(sorted(entries.items()))


def _ports(place: Place, text: str) -> list[str]:
    body, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    body = body.rpartition(":")[2]  # a host part says nothing in an image
    match = _PORT.fullmatch(body)
    if match is None:
        raise place.fault(f"invalid containerPort: {body}")
    if protocol not in ("tcp", "udp", "sctp"):
        raise place.fault(f"invalid proto: {protocol}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last > 65535:
        raise place.fault(f"invalid port range: {body}")
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    return int(match[1]) << (10 * (1 + "kmgt".index(match[2].lower())) if match[2] else 0) if match else 0
