"""`worthit completion`: the script that completes worthit in a shell."""

from __future__ import annotations

import click

from worthit.cli import _terminal

SHELLS = ("bash", "zsh", "fish")
INSTALL = {
    "bash": 'eval "$(worthit completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(worthit completion zsh)"   in ~/.zshrc',
    "fish": "worthit completion fish > ~/.config/fish/completions/worthit.fish",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.option("--json", "is_json", is_flag=True, help="Print the script as JSON.")
def command(shell: str, is_json: bool) -> None:
    """Print the script that completes worthit in a shell.

    \b
    eval "$(worthit completion bash)"
    """
    from click.shell_completion import get_completion_class

    from worthit.cli._group import cli

    completer = get_completion_class(shell)
    assert completer is not None
    script = completer(cli, {}, "worthit", "_WORTHIT_COMPLETE").source()
    if is_json:
        _terminal.show_json({"schema": "worthit.completion/1", "shell": shell, "script": script})
        return
    _terminal.show([script])
    _terminal.note(f"To switch it on: {INSTALL[shell]}")
