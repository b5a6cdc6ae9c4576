"""How results are shown: tables, JSON lines, templates. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ketch.faults import CommandFailed
from ketch.gotemplate import TemplateError, parse
from ketch.gotemplaterun import render
from ketch.gotemplatevalues import to_json

if TYPE_CHECKING:
    from ketch.options import Given
    from ketch.session import Session

FORMAT_HELP = """
  |'table':            Print output in table format with column headers (default)
  |'table TEMPLATE':   Print output in table format using the given Go template
  |'json':             Print in JSON format
  |'TEMPLATE':         Print output using the given Go template.
"""

# go-cli: tabwriter with a minimum width of 10 and a padding of 3.
MINIMUM, PADDING = 10, 3
PARSING_FAILED = "template parsing error"

Row = Mapping[str, Any]


def columns(rows: Sequence[Sequence[str]], minimum: int = MINIMUM, padding: int = PADDING) -> str:
    """Rows of cells, each column as wide as its widest cell; the last is not padded. Source: text/tabwriter."""
    count = max((len(row) for row in rows), default=0)
    widths = [
        max([minimum, *(len(row[at]) + padding for row in rows if at < len(row) - 1)]) for at in range(count)
    ]
    return "".join(
        "".join(cell.ljust(widths[at]) if at < len(row) - 1 else cell for at, cell in enumerate(row)) + "\n"
        for row in rows
    )


def render_rows(
    form: str,
    rows: Sequence[Row],
    titles: Mapping[str, Any],
    table: str,
    raw: str = "",
    *,
    fault: str = PARSING_FAILED,
) -> str:
    """`rows` as `--format` says: the default table, `table TEMPLATE`, `json`, `raw` where there is one, or a template.

    `titles`: the heading of every field, or how it is made of an argument. Raises CommandFailed for a wrong template, which begins
    with `fault`.
    """
    if form == "json":
        return "".join(to_json(dict(sorted(row.items()))) + "\n" for row in rows)
    if form == "raw" and raw:
        form = raw
    is_table = form in ("", "table") or form.startswith("table ")
    body = table if form in ("", "table") else form[6:] if is_table else form
    body = (body if form == raw else body.strip()).replace("\\t", "\t").replace("\\n", "\n")
    check_template(body)
    try:
        lines = [render(body, dict(sorted(row.items()))) for row in rows]
        if not is_table:
            return "".join(line + "\n" for line in lines)
        heading = render(body, titles, header=True)
    except TemplateError as error:
        raise CommandFailed(f"{fault}: {error}") from error
    return columns([line.split("\t") for text in [heading, *lines] for line in text.split("\n")])


def check_template(form: str, fault: str = PARSING_FAILED, code: int = 1) -> None:
    """Raises CommandFailed for a template that cannot be read: before anything is asked of the engine."""
    try:
        parse(form.removeprefix("table "))
    except TemplateError as error:
        raise CommandFailed(f"{fault}: {error}", code) from error


def chosen_format(session: Session, given: Given, setting: str) -> str:
    """`--format`, or what the configuration says (`psFormat`, …) unless `--quiet` does. Raises CommandFailed for a wrong template."""
    form = given.text("format")
    if not form and not (given.knows("quiet") and given.on("quiet")):
        form = session.config.setting(setting)
    check_template(form)
    return form


def quiet_format(form: str, field: str, raw: str = "") -> str:
    """What `--quiet` makes of a format: of a table the one `field`, of `raw` its line; of any other nothing."""
    if form in ("", "table"):
        return field
    return raw if form == "raw" and raw else form


def render_one(form: str, value: Any) -> str:
    """One value by a template, or as JSON on one line. Raises CommandFailed."""
    if form == "json":
        form = "{{json .}}"
    check_template(form, code=64)
    try:
        return render(form, value)
    except TemplateError as error:
        raise CommandFailed(f"{PARSING_FAILED}: {error}") from error


def shortened(text: str, length: int) -> str:
    """At most `length` characters, the last an ellipsis when some were cut. Source: docker/cli formatter, Ellipsis."""
    if len(text) <= length:
        return text
    return text[: length - 1] + "…" if length > 1 else text[:length]


def short_id(text: str) -> str:
    """The first twelve digits of an id or digest."""
    return text.partition(":")[2][:12] if ":" in text else text[:12]


def label_of(labels: Mapping[str, str] | None) -> Callable[[str], str]:
    """`.Label "name"` of a row."""
    return lambda name: (labels or {}).get(name, "")


def label_title(name: str) -> str:
    """The heading of `.Label "name"`: its last part. Source: docker/cli formatter, SubHeaderContext."""
    return name.rpartition(".")[2].replace("-", " ").replace("_", " ")


def label_list(labels: Mapping[str, str] | None) -> str:
    """`a=b,c=d`."""
    return ",".join(sorted(f"{key}={value}" for key, value in (labels or {}).items()))
