"""``papyra completion``."""

from __future__ import annotations

from pathlib import Path

import pexpect
import pytest

from tests.cli.conftest import PATIENCE, Command, Done


@pytest.fixture
def completion(papyra: Command) -> Path:
    done = papyra("completion", "bash")
    assert (done.code, done.err) == (0, "")
    path = papyra.home / "completion.bash"
    path.write_text(done.out)
    return path


def test_papyra_completion_lets_bash_complete_commands_and_options(
    papyra: Command, completion: Path
) -> None:
    assert papyra.shell(f"bash -n {completion}") == Done(0, "")
    complete = f"""
    source {completion}
    name=$(complete -p papyra | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    completed() {{
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${{#COMP_LINE}}
        COMPREPLY=()
        $name papyra "${{@: -1}}" "${{@: -2:1}}"
        echo "${{COMPREPLY[@]}}"
    }}
    completed papyra ins
    completed papyra dead
    completed papyra ''
    completed papyra events --fo
    completed papyra metrics --format prom
    completed papyra completion z
    """
    done = papyra.shell(complete)
    assert done.err == ""
    inspect, dead, every, follow, prometheus, shell = (line.strip() for line in done.lines)
    assert inspect == "inspect"
    assert dead == "dead-letters"
    assert {"inspect", "events", "timeline", "recover", "copy", "bench"} <= set(every.split())
    assert follow == "--follow"
    assert prometheus == "prometheus"
    assert shell == "zsh"


def test_papyra_completion_lets_the_tab_key_complete_a_command_in_bash(
    papyra: Command, completion: Path
) -> None:
    child = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        env=papyra.environment({"PS1": "> ", "INPUTRC": "/dev/null"}),
        cwd=str(papyra.home),
        dimensions=(24, 80),
        timeout=PATIENCE,
        encoding="utf-8",
    )
    child.sendline(f"source {completion}; papyra() {{ echo \"called $*;\"; }}; echo read''y")
    child.expect("ready")
    child.send("papyra ins\t")
    child.expect("papyra inspect ")
    child.sendline("")
    child.expect("called inspect;")
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_papyra_completion_names_every_command_to_other_shells(papyra: Command, shell: str) -> None:
    from papyra.cli.app import COMMANDS  # noqa: PLC0415

    done = papyra("completion", shell)
    assert (done.code, done.err) == (0, "")
    for name in COMMANDS:
        assert name in done.out


def test_papyra_completion_of_an_unknown_shell_is_wrong_use(papyra: Command) -> None:
    for arguments in (["completion"], ["completion", "ksh"]):
        done = papyra(*arguments)
        assert (done.code, done.out) == (2, "")
        assert len(done.err.splitlines()) == 1
