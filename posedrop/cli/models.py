"""Models: push, ls."""

from __future__ import annotations

from pathlib import Path

import click

from posedrop.cli import display
from posedrop.cli.options import Options, json_option
from posedrop.models.push import push
from posedrop.terminal import say


@click.group("models")
def models_group() -> None:
    """Push trained models into the models bucket, and list them."""


@models_group.command("push")
@click.argument("project", type=click.Path(path_type=Path, exists=True))
@click.option("--name", required=True, help="What `--arg model=` will say.")
@click.option("--shuffle", type=int, help="Default: 1, or the only one there is.")
@click.option("--snapshot", help="Such as snapshot-best-120, or all; default: the config's.")
@json_option
@click.pass_obj
def models_push(
    options: Options,
    project: Path,
    name: str,
    shuffle: int | None,
    snapshot: str | None,
    as_json: bool,
) -> None:
    """Upload what of a trained DeepLabCut 3 project inference needs (or an exported .pt).

    \b
    posedrop models push ~/dlc/openfield-2026 --name openfield
    posedrop models push ~/dlc/openfield-2026 --name openfield --shuffle 2

    With a conditional top-down model (ctd_...) goes the bottom-up shuffle that the
    inference.conditions in its pytorch_config.yaml name.

    A folder with weights of DeepLabCut's model zoo, named as the zoo names them, becomes what
    `--analysis superanimal` runs; asking for it without them says which files to get:

    \b
    posedrop models push ~/zoo --name superanimal_topviewmouse
    """
    model = push(
        options.storage(),
        options.settings.models_bucket,
        project,
        name,
        shuffle=shuffle,
        snapshot=snapshot,
        on_file=None
        if as_json
        else lambda file: say(f"  {file.path} {display.describe_size(file.size)}"),
    )
    if as_json:
        display.print_json(model.model_dump(mode="json", by_alias=True))
    else:
        say(f"{model.name} {model.digest[:12]}: {', '.join(model.bodyparts)}")


@models_group.command("ls")
@json_option
@click.pass_obj
def models_ls(options: Options, as_json: bool) -> None:
    """List the models.

    \b
    posedrop models ls
    """
    with options.client() as client:
        items = client.models()
    if as_json:
        display.print_json(items)
    elif not items:
        say("there is none yet; `posedrop models push` puts one there", err=True)
    else:
        display.table(
            [
                [item["name"], item["digest"][:12], item["net_type"], ", ".join(item["bodyparts"])]
                for item in items
            ]
        )
