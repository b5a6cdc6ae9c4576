"""`ketch completion SHELL`, and `ketch __complete WORDS`, which the shells' scripts ask: candidates, and then what kind of word it is. Acting.

The answer is cobra's, so that scripts made for docker work where docker is ketch: a line for each candidate, its description behind
a tab, and at last `:4`, or `:0` where the word may also be a file. `ketch __completeNoDesc` leaves the descriptions out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from ketch.commandtable import GROUPS, TABLE, Entry, find, members
from ketch.faults import CommandFailed
from ketch.options import Command, Flag, Given, HelpAsked, read_options
from ketch.session import Session

FILES, NO_FILES = ":0", ":4"

SCRIPTS = {
    "bash": r"""# ketch completion for bash: source <(ketch completion bash)
_ketch() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$' \t\n' one
    local -a words found
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local word=${words[${#words[@]}-1]}
    mapfile -t found < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
    COMPREPLY=()
    [[ ${#found[@]} -gt 0 ]] || return 0
    [[ ${found[${#found[@]}-1]} == :0 ]] && compopt -o default 2>/dev/null
    unset "found[${#found[@]}-1]"
    # readline takes what stands in front of a colon or an equals sign for another word.
    local before=${word%"${word##*[:=]}"}
    for one in "${found[@]}"; do
        one=${one%%$'\t'*}
        COMPREPLY+=("${one#"$before"}")
    done
}
complete -F _ketch ketch
""",
    "zsh": r"""#compdef ketch
# ketch completion for zsh: source <(ketch completion zsh)
_ketch() {
    local -a lines found
    local line
    lines=("${(@f)$(${words[1]} __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    for line in "${(@)lines[1,-2]}"; do
        found+=("${${line//:/\\:}/$'\t'/:}")
    done
    (( ${#found} )) && _describe -t candidates candidate found
    [[ ${lines[-1]} == :0 ]] && _files
}
compdef _ketch ketch
""",
    "fish": r"""# ketch completion for fish: ketch completion fish | source
function __ketch_complete
    set -l typed (commandline -opc) (commandline -ct)
    set -l lines ($typed[1] __complete $typed[2..] 2>/dev/null)
    string match -v -r '^:\d+$' -- $lines
    contains -- :0 $lines; and __fish_complete_path (commandline -ct)
end
complete -c ketch -f -a '(__ketch_complete)'
""",
}

# What the arguments of commands name, by the commands' own names; the first alone where it ends with 1.
ARGUMENTS = {
    "containers": """container attach1 commit1 diff1 exec1 export1 inspect kill logs1 pause port1 rename1 restart rm start stats stop top1
    unpause update wait""",
    "images": "image history1 inspect ls1 push1 rm save tag1",
    "networks": "network connect1 disconnect1 inspect rm",
    "volumes": "volume inspect rm",
    "contexts": "context export1 inspect rm update1 use1",
}
# What the values of options name.
OPTIONS = {"network": "networks", "volumes-from": "containers", "context": "contexts"}


def kind_of(own: str, position: int) -> str:
    """What argument number `position` of the command `own` names: a key of ARGUMENTS, `objects`, `files`, or "". Pure."""
    if own == "completion":
        return "shells"
    if own in ("container run", "container create"):
        return "images" if position == 0 else "files"
    if own in ("network connect", "network disconnect"):
        return ("networks", "containers", "")[min(position, 2)]
    if own == "inspect":
        return "objects"
    for kind, words in ARGUMENTS.items():
        group, *names = words.split()
        for name in names:
            if own == f"{group} {name.rstrip('1')}":
                return kind if position == 0 or not name.endswith("1") else ""
    return "files"


def completion(session: Session, given: Given) -> int:
    """The script for a shell."""
    script = SCRIPTS.get(given.arguments[0])
    if script is None:
        raise CommandFailed(
            f'unknown shell: "{given.arguments[0]}": must be one of {", ".join(sorted(SCRIPTS))}'
        )
    session.write(script.encode())
    return 0


def answer(
    words: list[str],
    options: Command,
    open_session: Callable[[list[str]], Session],
    load: Callable[[Entry], Any],
) -> list[str]:
    """The lines for what was typed behind the program's name; the last word is the one to be completed, empty for a new one.

    options: the program's own. open_session: makes a session of the global options that were typed.
    """
    *before, word = words or [""]
    taken, rest, missing = _global(before, options)
    if missing is not None:
        return _value(missing, word, lambda: open_session(taken))
    if not rest:
        if word.startswith("-"):
            return _flags(options.flags()[0], word)
        return [*_starting(_commands(), word), NO_FILES]
    if rest[0] in GROUPS and len(rest) == 1:
        return [*_starting(members(rest[0]), word), NO_FILES]
    found = find(" ".join(rest[:2])) if rest[0] in GROUPS else find(rest[0])
    if found is None:
        return [NO_FILES]
    entry, _ = found
    command: Command = load(entry)[0]
    typed = rest[2:] if rest[0] in GROUPS else rest[1:]
    position, missing = _count(command, typed)
    if missing is not None:
        return _value(missing, word, lambda: open_session(taken))
    if word.startswith("-") and "--" not in typed and (command.interspersed or position == 0):
        return _flags(command.flags()[0], word)
    name = entry.paths.split(", ")[0].split("|")[0]
    most = command.arguments[1]
    kind = kind_of(name, position) if most is None or position < most else ""
    return _objects(kind, word, lambda: open_session(taken), frozenset(typed))


def _commands() -> list[tuple[str, str]]:
    plain = []
    for entry in TABLE:
        typed = [path for path, _ in entry.spellings() if " " not in path]
        plain += [(path, entry.summary) for path in typed if entry.summary]
    return sorted([*plain, *GROUPS.items()])


def _starting(rows: Iterable[tuple[str, str]], word: str) -> list[str]:
    return [f"{name}\t{summary}" for name, summary in rows if name.startswith(word)]


def _flags(flags: list[Flag], word: str) -> list[str]:
    names = [(f"--{flag.name}", flag.text.split("\n")[0]) for flag in flags]
    if word == "-":
        names += [(f"-{flag.short}", flag.text.split("\n")[0]) for flag in flags if flag.short]
    return [*_starting([*names, ("--help", "Print usage")], word), NO_FILES]


def _global(words: list[str], options: Command) -> tuple[list[str], list[str], Flag | None]:
    """(the program's options, the rest, the option whose value comes next)."""
    flags, _ = options.flags()
    at = 0
    while at < len(words) and words[at].startswith("-"):
        flag = _needing_value(flags, words[at])
        if flag is not None and at + 1 == len(words):
            return words[:at], [], flag
        at += 2 if flag is not None else 1
    return words[:at], words[at:], None


def _count(command: Command, typed: list[str]) -> tuple[int, Flag | None]:
    """(how many arguments were typed, the option whose value comes next)."""
    flags, _ = read_options(command.options)
    count = at = 0
    while at < len(typed):
        if typed[at].startswith("-") and typed[at] != "-" and (command.interspersed or count == 0):
            flag = _needing_value(flags, typed[at])
            if flag is not None and at + 1 == len(typed):
                return count, flag
            at += 1 if flag is not None else 0
        else:
            count += 1
        at += 1
    return count, None


def _needing_value(flags: list[Flag], typed: str) -> Flag | None:
    """The option that `typed` names, if its value is the next word."""
    if typed.startswith("--"):
        return next((flag for flag in flags if flag.kind and typed == f"--{flag.name}"), None)
    shorts = {flag.short: flag for flag in flags if flag.short}
    for at, letter in enumerate(typed[1:], 2):
        flag = shorts.get(letter)
        if flag is not None and flag.kind:
            return flag if at == len(typed) else None  # `-p80` has its value
    return None


def _value(flag: Flag, word: str, open_session: Callable[[], Session]) -> list[str]:
    return _objects(OPTIONS.get(flag.name, "files"), word, open_session, frozenset())


def _objects(kind: str, word: str, open_session: Callable[[], Session], typed: frozenset[str]) -> list[str]:
    """Names of what there is; none when the engine cannot tell."""
    if kind == "files":
        return [FILES]  # the shell's business
    found: list[str] = []
    with contextlib.suppress(CommandFailed, HelpAsked, OSError):
        if kind:
            found = _names(kind, open_session())
    return [*(name for name in found if name.startswith(word) and name not in typed), NO_FILES]


def _names(kind: str, session: Session) -> list[str]:
    if kind == "shells":
        return sorted(SCRIPTS)
    if kind == "contexts":
        return ["default", *session.contexts.names()]
    if kind == "networks":
        return sorted(one["Name"] for one in session.engine.get("/networks"))
    if kind == "volumes":
        return sorted(one["Name"] for one in session.engine.get("/volumes").get("Volumes") or ())
    if kind == "images":
        images = session.engine.get("/images/json")
        tags = sorted(tag for one in images for tag in one.get("RepoTags") or ())
        return [name for tag in tags for name in (*_untagged(tag), tag)]
    containers = session.engine.get("/containers/json", {"all": True})
    names = sorted(name[1:] for one in containers for name in one.get("Names") or () if "/" not in name[1:])
    return names if kind == "containers" else names + _names("images", session)


def _untagged(tag: str) -> list[str]:
    return [tag.removesuffix(":latest")] if tag.endswith(":latest") else []


COMMANDS = {"completion": (Command("bash|zsh|fish", "", (1, 1)), completion)}
