"""run.py finds a Python that really runs, says so, and installs only when something changed."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.requires import ROOT


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load a copy of run.py that works on a small project in a folder of its own."""
    folder = tmp_path / "project"
    (folder / "requirements").mkdir(parents=True)
    for name in ("dev", "local", "tools"):
        (folder / "requirements" / f"{name}.txt").write_text(f"# {name}\n")
    (folder / "pyproject.toml").write_text("# project\n")
    script = folder / "run.py"
    script.write_bytes((ROOT / "run.py").read_bytes())
    spec = importlib.util.spec_from_file_location("run_in_a_copy", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def shim(folder: Path, name: str, *, says: str = "", exit_status: int = 0) -> Path:
    """Put an executable *name* into *folder* that prints *says*, as an interpreter would when asked what it is."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {exit_status}\n")
    path.chmod(0o755)
    return path


def answer(minor: int, *, makes_venvs: bool = True) -> str:
    """Return what a Python 3.*minor* says to the probe."""
    return json.dumps([[3, minor, 1], makes_venvs, True])


def test_choice_passes_over_a_shim_that_fails(run: ModuleType, tmp_path: Path) -> None:
    """A python3.13 that is there and does not run is named, and the next one that runs is taken."""
    shim(tmp_path / "bin", "python3.13", exit_status=127)
    expected = shim(tmp_path / "bin", "python3.12", says=answer(12))
    choice = run.choose_python(str(tmp_path / "bin"), sys.executable, have_uv=False)
    assert choice.python.path == str(expected)
    assert choice.looked == [f"python3.13 does not run ({tmp_path / 'bin' / 'python3.13'})"]


def test_choice_looks_behind_a_shim_on_the_path(run: ModuleType, tmp_path: Path) -> None:
    """A shim does not hide the same name further down the PATH."""
    shim(tmp_path / "shims", "python3.13", exit_status=127)
    expected = shim(tmp_path / "bin", "python3.13", says=answer(13))
    choice = run.choose_python(f"{tmp_path / 'shims'}:{tmp_path / 'bin'}", sys.executable, have_uv=False)
    assert choice.python.path == str(expected)


def test_choice_prefers_the_newest(run: ModuleType, tmp_path: Path) -> None:
    """The order is 3.13, 3.12, 3.11, whatever the order on the PATH."""
    shim(tmp_path / "a", "python3.11", says=answer(11))
    expected = shim(tmp_path / "b", "python3.13", says=answer(13))
    choice = run.choose_python(f"{tmp_path / 'a'}:{tmp_path / 'b'}", sys.executable, have_uv=False)
    assert choice.python.path == str(expected)


def test_choice_falls_back_to_the_running_one(run: ModuleType, tmp_path: Path) -> None:
    """Without any of the names the interpreter that runs the script is taken when it is new enough."""
    choice = run.choose_python(str(tmp_path), sys.executable, have_uv=False)
    assert choice.python.path == sys.executable
    assert choice.looked == ["python3.13 not found", "python3.12 not found", "python3.11 not found"]


def test_choice_is_none_when_all_are_too_old(run: ModuleType, tmp_path: Path) -> None:
    """A running 3.9 is named with its version, and the advice says what to install."""
    old = shim(tmp_path / "bin", "python3", says=answer(9))
    choice = run.choose_python(str(tmp_path / "bin"), str(old), have_uv=False)
    assert choice.python is None
    assert choice.looked[-1] == f"the running one is 3.9.1 ({old})"
    assert "apt-get install python3 python3-venv" in run.how_to_install(choice.lacks_venv)


@pytest.mark.parametrize(("have_uv", "expected"), [(False, "python3.11"), (True, "python3.12")])
def test_choice_needs_ensurepip_unless_uv_is_here(
    run: ModuleType, tmp_path: Path, *, have_uv: bool, expected: str
) -> None:
    """Debian's python3 without python3-venv cannot make an environment: the next one may, and uv can."""
    shim(tmp_path / "bin", "python3.12", says=answer(12, makes_venvs=False))
    shim(tmp_path / "bin", "python3.11", says=answer(11))
    choice = run.choose_python(str(tmp_path / "bin"), sys.executable, have_uv=have_uv)
    assert Path(choice.python.path).name == expected


def test_choice_without_venv_says_which_package(run: ModuleType, tmp_path: Path) -> None:
    """When only venv is missing, the advice is python3-venv and not another Python."""
    only = shim(tmp_path / "bin", "python3.12", says=answer(12, makes_venvs=False))
    choice = run.choose_python(str(tmp_path / "bin"), str(only), have_uv=False)
    assert choice.python is None
    assert "apt-get install python3-venv (or python3.12-venv" in run.how_to_install(choice.lacks_venv)


def test_choice_never_is_our_own_environment(run: ModuleType, tmp_path: Path) -> None:
    """With .venv activated its python3.13 comes first on the PATH, and may be about to be removed."""
    own = Path(run.VENV) / "bin"
    own.mkdir(parents=True)
    shim(own, "python3.13", says=answer(13))
    expected = shim(tmp_path / "bin", "python3.13", says=answer(13))
    choice = run.choose_python(f"{own}:{tmp_path / 'bin'}", sys.executable, have_uv=False)
    assert choice.python.path == str(expected)


def test_script_ends_with_advice_when_no_python_suits(run: ModuleType, tmp_path: Path) -> None:
    """The whole script, on a PATH of failing shims and run by a Python too old: exit 1, what it saw, what to do."""
    shim(tmp_path / "bin", "python3.13", exit_status=127)
    code = "import run, sys; run.OLDEST = (4, 0); run.main(['run.py', 'demo'])"
    environ = {"PATH": str(tmp_path / "bin"), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run.ROOT, env=environ, capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[0].startswith("Looked for Python: python3.13 does not run (")
    assert "python3.12 not found; python3.11 not found; the running one is 3." in lines[0]
    assert lines[1].startswith("simplu-worker needs Python 3.11 or newer. Install one")


@pytest.mark.parametrize(
    ("installed", "wanted", "expected"),
    [("", "local", "local"), ("local", "local", "local"), ("dev", "local", "dev"), ("local", "dev", "dev")],
)
def test_wanted_set_never_shrinks(run: ModuleType, installed: str, wanted: str, expected: str) -> None:
    """`dev` contains `local`: a demo after a test installs nothing, and takes nothing away."""
    assert run.wanted_set(wanted, {"requirements": installed}) == expected


def test_digest_changes_with_what_it_covers(run: ModuleType) -> None:
    """The digest follows the pins and pyproject.toml, and nothing else."""
    before = run.digest("dev")
    (Path(run.ROOT) / "requirements" / "local.txt").write_text("# changed\n")
    assert run.digest("dev") == before
    (Path(run.ROOT) / "requirements" / "dev.txt").write_text("# changed\n")
    after_pins = run.digest("dev")
    (Path(run.ROOT) / "pyproject.toml").write_text("# changed\n")
    assert len({before, after_pins, run.digest("dev")}) == 3


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null"])
def test_stamp_is_empty_when_unreadable(run: ModuleType, tmp_path: Path, text: str | None) -> None:
    """An environment without a whole stamp counts as not installed."""
    if text is not None:
        (tmp_path / run.STAMP).write_text(text)
    assert run.read_stamp(str(tmp_path)) == {}


def test_stamp_is_read_as_written(run: ModuleType, tmp_path: Path) -> None:
    """What was written comes back."""
    stamp = {"requirements": "dev", "folder": "/somewhere", "digest": "12"}
    run.write_stamp(str(tmp_path), stamp)
    assert run.read_stamp(str(tmp_path)) == stamp


@pytest.mark.parametrize(
    ("inside", "folder", "expected"),
    [
        (answer(12), None, True),
        (answer(11), None, False),
        ("", None, False),
        (answer(12), "/elsewhere", False),
    ],
    ids=["the same Python", "another Python", "does not run", "moved with its folder"],
)
def test_environment_is_usable_only_as_it_was_made(
    run: ModuleType, tmp_path: Path, inside: str, folder: str | None, *, expected: bool
) -> None:
    """An environment is made anew when it is broken, of another Python, or carried here from another folder."""
    (tmp_path / "venv").mkdir()
    shim(tmp_path / "venv" / "bin", "python", says=inside)
    python = run.Python("python3.12", (3, 12, 1), makes_venvs=True, has_pip=True)
    stamp = {} if folder is None else {"folder": folder}
    assert run.usable(str(tmp_path / "venv"), python, stamp, have_uv=False) is expected


@pytest.mark.parametrize("has_wheel", [True, False])
def test_uv_is_fetched_where_there_is_a_wheel_of_it(run: ModuleType, tmp_path: Path, *, has_wheel: bool) -> None:
    """Without one pip installs everything; one that is there is taken."""
    pip = shim(tmp_path / "bin", "python", exit_status=0 if has_wheel else 1)
    path = str(pip.parent / "uv")
    assert run.fetch_uv(str(tmp_path)) == (path if has_wheel else None)
    shim(pip.parent, "python", exit_status=1)
    shim(pip.parent, "uv")
    assert run.fetch_uv(str(tmp_path)) == path


def test_failed_command_is_told_whole(run: ModuleType) -> None:
    """A command is silent until it fails; then everything it said is in the error."""
    with pytest.raises(run.CommandFailedError, match=r"(?s)said this.*exit status 3"):
        run.quiet(["sh", "-c", "echo said this; exit 3"])


def test_second_run_waits_for_the_first(run: ModuleType) -> None:
    """While one run installs, another waits, says so, and goes on when the first is done."""
    code = "import run\nwith run.alone(): print('in', flush=True)"
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as first:
        first.enter_context(run.alone())
        with subprocess.Popen(command, cwd=run.ROOT, stdout=pipe, stderr=pipe, text=True) as second:
            assert second.stderr is not None
            said = second.stderr.readline()
            running = second.poll() is None
            first.close()
            out, _ = second.communicate(timeout=30)
    assert said.startswith("Waiting for another run")
    assert running
    assert (second.returncode, out) == (0, "in\n")


def test_wrong_command_shows_the_usage() -> None:
    """A command that does not exist is wrong usage: exit 2 and the list."""
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), "dmeo"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: python3 run.py COMMAND")


def test_script_has_the_syntax_of_python_3_6() -> None:
    """An old python3 must be able to read the script, or it could not say what to install."""
    ast.parse((ROOT / "run.py").read_text(), feature_version=(3, 6))


def test_make_lists_its_targets() -> None:
    """`make` alone lists every command of run.py."""
    done = subprocess.run(["make", "-s", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [line.split()[1] for line in done.stdout.splitlines()]
    expected = (
        "help demo test lint bench bench-directory bench-isolation bench-provisioning bench-writing"
        " mutants fuzz setup tools site peers audit lock clean"
    )
    assert names == expected.split()
