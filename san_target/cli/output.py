"""What the commands print: one JSON document for programs, aligned tables for people.

On a terminal tables are drawn by rich; into a pipe or a file they are plain, aligned and never cut off.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import click

R = TypeVar("R")


class Column(NamedTuple):
    """A column: its title, the text of a row's cell, and whether it is a number (aligned right)."""

    title: str
    cell: Callable[[Any], str]
    number: bool = False


def with_json(command: Callable[..., R]) -> Callable[..., R]:
    """The --json option; the command gets it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, with stable keys.")(
        command
    )


def show(value: Any, as_json: bool, human: Callable[[], None]) -> None:
    """Print `value` as JSON, or let `human` print it."""
    if as_json:
        print_json(value)
    else:
        human()


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(columns: Sequence[Column], rows: Sequence[Any], nothing: str) -> None:
    """A table, or `nothing` for no rows."""
    if not rows:
        click.echo(nothing)
        return
    cells = [[printable(column.cell(row)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, cells)
    else:
        for line in plain_table(columns, cells):
            click.echo(line)


def plain_table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns, two blanks between them, titles first."""
    lines = [[column.title for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return [
        "  ".join(
            text.rjust(width) if column.number else text.ljust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    ]


def _print_rich(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.number else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """One "name  value" line for each field; a field without a value is left out."""
    kept = [(name, printable(value)) for name, value in fields if value]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")


def printable(text: str) -> str:
    """Text of foreign origin (initiator names) without control characters, which a terminal might obey."""
    return "".join(character if character.isprintable() else "?" for character in text)
