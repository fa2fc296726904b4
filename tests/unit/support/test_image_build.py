"""The steps of a Dockerfile as the tests follow them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.image_build import ImageBuild, Instruction, context_of, missing_sources, parse_dockerfile

PATHS = ["LICENSE", "a/__pycache__/b.pyc", "a/b.py", "c/d.txt", "c/e.txt"]


@pytest.mark.parametrize(
    ("dockerignore", "expected"),
    [
        ("", PATHS),
        ("*\n", []),
        ("*\n!a\n**/__pycache__\n", ["a/b.py"]),
        ("# all but one\n*\n!c/d.txt\n", ["c/d.txt"]),
        ("c\n", ["LICENSE", "a/__pycache__/b.pyc", "a/b.py"]),
    ],
)
def test_context_is_what_the_last_matching_pattern_leaves(dockerignore: str, expected: list[str]) -> None:
    """A pattern matches a path or a folder above it; one with `!` brings it back."""
    assert context_of(PATHS, dockerignore) == expected


def test_instructions_are_joined_over_lines_and_comments() -> None:
    """A backslash continues a line, also across a comment."""
    text = "# first\nFROM a AS b\nRUN one \\\n# why\n    && two\n"
    assert parse_dockerfile(text) == [Instruction("FROM", "a AS b"), Instruction("RUN", "one && two")]


def test_sources_that_are_missing_are_those_of_the_context_alone() -> None:
    """A folder is there with any file below it; what another stage has is not asked of the context."""
    instructions = parse_dockerfile("COPY a c/d.txt e /x/\nCOPY --from=build /opt /opt\n")
    assert missing_sources(instructions, PATHS) == ["e"]


def test_steps_are_done_below_a_folder_and_each_stage_begins_empty(tmp_path: Path) -> None:
    """Absolute paths lead below the folder, also in variables; a folder is copied as its contents."""
    context = tmp_path / "context"
    (context / "a").mkdir(parents=True)
    (context / "a" / "b.txt").write_text("b\n")
    text = """
        FROM one AS build
        WORKDIR /src
        COPY a /opt/a
        RUN cat /opt/a/b.txt > here && cp /src/here /opt/a/c.txt
        FROM one
        COPY --from=build /opt/a /opt
        ENV WHERE=/opt:$PATH
        ENTRYPOINT ["echo"]
        CMD ["$WHERE"]
    """
    image = ImageBuild(context, tmp_path, {"PATH": "/usr/bin:/bin"})
    image.follow(parse_dockerfile(text))
    written, _ = image.run(" ".join([*image.entrypoint, *image.command]))
    assert written == f"{image.root}/opt:/usr/bin:/bin\n"
    assert sorted(path.name for path in (image.root / "opt").iterdir()) == ["b.txt", "c.txt"]
    assert not (image.root / "src").exists()


def test_unknown_instruction_fails(tmp_path: Path) -> None:
    """What the steps cannot follow is not passed over."""
    with pytest.raises(AssertionError, match="ONBUILD"):
        ImageBuild(tmp_path, tmp_path, {}).follow(parse_dockerfile("FROM scratch AS one\nONBUILD RUN true\n"))
