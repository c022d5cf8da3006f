"""``papyra completion``."""

from __future__ import annotations

from typing import Literal

from papyra.cli._output import write
from papyra.cli.app import make_app


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print what makes a shell complete these commands.

    Examples
    --------
      papyra completion bash > ~/.local/share/bash-completion/completions/papyra
      papyra completion zsh > "${fpath[1]}/_papyra"
      papyra completion fish > ~/.config/fish/completions/papyra.fish

    Parameters
    ----------
    shell
        Which shell.

    """
    write(make_app().generate_completion(shell=shell))
