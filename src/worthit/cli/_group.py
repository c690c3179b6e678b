"""The group of verbs: each is imported when it is asked for, and a misspelt one gets a hint."""

from __future__ import annotations

import importlib

import click

import worthit
from worthit.errors import unknown_name

# Verb -> one line of help. The line stands here so that `worthit --help` imports no verb; a test
# holds it equal to the verb's own.
VERBS = {
    "judge": "Judge every technique on a case: apply, defer or never, and why.",
    "cost": "Cost a case: parameters, cache, FLOPs, memory, time and the ledger.",
    "explain": "Explain a technique, and what it would do for a case.",
    "measure": "Measure a technique against its baseline, with several seeds, and decide.",
    "scorecard": "Show every technique: claimed, predicted, measured.",
    "quiz": "Ask about bottlenecks, verdicts and sizes of real cases.",
    "generate": "Generate text with a model, token by token as it comes.",
    "serve": "Serve a model to clients of OpenAI's interface.",
    "quantize": "Quantize a model: its weights in few bits, into a new folder.",
    "align": "Align a model: learn from preferences, ratings, demonstrations or feedback.",
    "train-heads": "Train heads that draft for a model, on what it says itself.",
    "merge": "Merge checkpoints by a recipe, without training.",
    "steer": "Steer a model along a direction, and show the text before and after.",
    "probe": "Probe what a model's layers know, with the controls that keep it honest.",
    "patch": "Patch activations of one prompt into another, and see which bring its answer back.",
    "edit": "Edit facts (ROME), and show what the model says before and after.",
    "reason": "Spend more tokens on an answer: sample, vote, search, think longer, revise.",
    "sae": "Train sparse autoencoders on a model, and look and steer through them.",
    "context": "Measure how much of its context a model uses.",
    "list": "List models, devices, techniques, workloads or experiments.",
    "calibrate": "Measure this machine, so that `--on this` is exact.",
    "doctor": "Say what is installed here, what is missing, and what gets it.",
    "completion": "Print the script that completes worthit in a shell.",
}


class Verbs(click.Group):
    """A group whose commands live in `worthit.cli.<verb>`, as `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of use."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"worthit.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest verbs where there is none of that name."""
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            raise unknown_name("verb", args[0], VERBS, see="worthit --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    name="worthit",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(worthit.__version__, prog_name="worthit", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Is a frontier LLM technique worth it for your model, workload and hardware?

    Start with:  worthit judge grammar-tutor
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
