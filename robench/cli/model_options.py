"""``--model`` and the options around it, which several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from robench.types import ExternalModel, RobenchError, parse_channels


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --model, --weights, --mean, --std, --trust, --weights-dtype and --classes; the command gets them as one ``model``, an ``ExternalModel`` or None."""

    @functools.wraps(command)
    def wrapped(
        *, model: str | None, weights: Path | None, mean: str | None, std: str | None, trust: bool, weights_dtype: str, classes: str | None,
        **rest: Any,
    ) -> Any:  # fmt: skip
        means, stds = parse_channels(mean, "mean"), parse_channels(std, "std")
        given = ExternalModel(
            model or "", weights, mean=means, std=stds, trust=trust, data_dir=rest.get("data_dir"), weights_dtype=weights_dtype,
            classes=classes or "",
        )  # fmt: skip
        used = bool(weights or means or stds or trust or classes or weights_dtype != "float32")
        if used and model is None and (rest.get("ckpt") is not None or command.__name__ != "verify"):
            raise RobenchError(
                "--weights, --mean, --std, --trust, --weights-dtype and --classes belong to --model; a checkpoint of robench knows its own"
            )
        return command(model=given if model is not None or used else None, **rest)

    options = [
        click.option(
            "--model",
            help="Or a model that robench did not train: FILE.py:FACTORY, package.module:FACTORY, torchvision:NAME, timm:NAME, hf:ORG/NAME, "
            "robustbench:NAME, a Hub model's folder, a TorchScript or torch.export file; see `robench list models`.",
        ),
        click.option(
            "--weights", type=click.Path(path_type=Path), help="State dict for --model: safetensors, or torch.save of one."
        ),
        click.option(
            "--mean", help="Normalisation in front of --model, per channel, such as 0.4914,0.4822,0.4465 [default: none]."
        ),
        click.option("--std", help="Its standard deviations."),
        click.option("--trust", is_flag=True, help="Let --model be a program in a file: using it runs code that came with it."),
        click.option(
            "--weights-dtype",
            type=click.Choice(["float32", "as-is"]),
            default="float32",
            help="as-is: compute in half or bfloat16 where the weights of --model are [default: in float32].",
        ),
        click.option(
            "--classes",
            help="Which outputs of --model stand for the data's classes, where it has more: imagenet, a file with a name a line, or numbers such as 0,217,482.",
        ),
    ]
    return functools.reduce(lambda inner, option: option(inner), reversed(options), wrapped)
