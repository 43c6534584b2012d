"""The pages cannot drift: their commands are the program's, their files are in the tree, the picture is its text's."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from freehold.cli.main import main
from freehold.cli.output import Program
from freehold.cli.settings import Settings
from freehold.cli.share import ShareGroup
from scripts import command_reference, terminal_picture
from tests.docs.pages import PAGES, ROOT, CommandLine, exists, get_command_lines, get_paths, get_story, get_targets

LINES = [line for page in PAGES for line in get_command_lines(page)]
NAMED = [(page, name, places) for page in PAGES for name, places in get_paths(page)]


def find_command(arguments: tuple[str, ...]) -> tuple[click.Command, click.Context, list[str]]:
    """The command that the words name, its context, and the words that are left for it. UsageError."""
    command: click.Command = main
    program = Program(Settings({}), as_json=False)
    context = click.Context(main, info_name="freehold", obj=program, **main.context_settings)
    words = list(arguments)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if isinstance(command, ShareGroup) and words[0] not in command.commands:
            words.insert(0, "new")  # its verb may be left out
        name = words.pop(0)
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no command {name!r}", context)
        command, context = found, click.Context(found, info_name=name, parent=context)
    return command, context, words


def check_line(line: CommandLine) -> None:
    """UsageError unless the program knows command and options; and takes the line as it stands where it is whole."""
    command, context, words = find_command(line.arguments)
    if line.is_whole:
        command.make_context(context.info_name, list(words), parent=context.parent)
    else:
        command.make_parser(context).parse_args([word for word in words if word != "..."])


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.page}: {' '.join(line.arguments)}")
def test_a_command_line_parses(line: CommandLine) -> None:
    check_line(line)


@pytest.mark.parametrize(
    ("arguments", "is_whole"),
    [
        (("nonsense",), False),
        (("epoch", "nonsense"), False),
        (("cp", "--nonsense"), False),
        (("why", "operator-1", "--epoch"), False),
        (("epoch", "show", "three"), True),
        (("cp", "only-one"), True),
        (("ls", "fh://demo", "one", "too", "many"), True),
    ],
)
def test_a_line_that_is_wrong_is_found(arguments: tuple[str, ...], is_whole: bool) -> None:
    with pytest.raises(click.UsageError):
        check_line(CommandLine("page", arguments, is_whole))


def test_the_story_has_its_steps() -> None:
    steps = [words[0] for words in get_story()]
    assert steps == ["status", "cp", "ls", "cp", "operator", "epoch", "epoch", "why", "epoch", "claim", "watch"]


@pytest.mark.parametrize(("page", "name", "places"), NAMED, ids=[f"{page.name}: {name}" for page, name, _ in NAMED])
def test_what_a_page_names_exists(page: Path, name: str, places: list[Path]) -> None:
    assert any(exists(place) for place in places), f"{page.name} names {name}"


def test_enough_is_found_to_be_checked() -> None:
    named = {page.name for page, _, _ in NAMED}
    assert named >= {"README.md", "CONTRIBUTING.md", "architecture.md", "decisions.md", "configuration.md"}
    assert len(NAMED) > 100
    assert not exists(ROOT / "docs" / "no-such-page.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    targets = {line.partition(":")[0] for line in lines if line and line[0].isalpha()}
    assert get_targets(page) <= targets


def test_the_command_reference_is_what_the_commands_say() -> None:
    assert command_reference.PAGE.read_text(encoding="utf-8") == command_reference.build_page(main)


def test_the_picture_is_its_texts_small_and_fetches_nothing() -> None:
    picture = terminal_picture.build_picture(terminal_picture.TEXT.read_text(encoding="utf-8"))
    assert terminal_picture.PICTURE.read_text(encoding="utf-8") == picture
    assert len(picture.encode()) < 60_000
    assert not [word for word in ("<script", "href", "url(", "@import", "@font-face") if word in picture]


def test_the_pictures_commands_parse() -> None:
    text = terminal_picture.TEXT.read_text(encoding="utf-8")
    commands = [line.partition("  # ")[0].split()[2:] for line in text.splitlines() if line.startswith("$ freehold ")]
    assert len(commands) > 7
    for words in commands:
        check_line(CommandLine(terminal_picture.TEXT.name, tuple(words), is_whole=True))
