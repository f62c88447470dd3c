"""``--dataset`` and the options around it, which several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from robench.types import ExternalData


def data_options(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --dataset, --resize, --crop, --interpolation, --check and --subset; the command gets them as one ``dataset``, or None.

    Args:
        default: whose data are meant where none are named, such as "the checkpoint's own".
    """

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapped(
            *, dataset: str | None, resize: str | None, crop: str | None, interpolation: str | None, check: bool, subset: str | None, **rest: Any
        ) -> Any:  # fmt: skip
            asked = ExternalData(dataset, resize=resize, crop=crop, interpolation=interpolation, check=check, subset=subset)
            return command(dataset=None if asked == ExternalData(None) else asked, **rest)

        options = [
            click.option("--dataset", help=f"One of `robench list datasets`, a folder, or a .npz file [default: {default}]."),
            click.option(
                "--resize",
                help="Of picture files: the short side in pixels, such as 256, or HEIGHTxWIDTH; none: as they are [default: what the model's files say].",
            ),
            click.option("--crop", help="The centre that is kept, such as 224, or HEIGHTxWIDTH; none: all."),
            click.option("--interpolation", help="Of the resize: bilinear, bicubic, nearest, lanczos, box or hamming."),
            click.option(
                "--check", is_flag=True, help="Decode every picture file first, to name damaged ones before hours are spent."
            ),
            click.option(
                "--subset", help="A part of the data set: robustbench, the 5,000 pictures of ImageNet that RobustBench takes."
            ),
        ]
        return functools.reduce(lambda inner, option: option(inner), reversed(options), wrapped)

    return decorated
