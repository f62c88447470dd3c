"""How long the command line takes to answer: medians of whole processes, in turn, against Python alone and importing torch.

python benchmarks/startup.py [--repeats 9]
"""

import subprocess
import sys
import time

import click
import numpy as np

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "robench --help": ["-m", "robench", "--help"],
    "robench list attacks": ["-m", "robench", "list", "attacks"],
    "robench attack --help": ["-m", "robench", "attack", "--help"],
    "python -c 'import torch'": ["-c", "import torch"],
}


@click.command()
@click.option("--repeats", default=9)
def main(repeats):
    spent = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            spent[name].append(time.perf_counter() - started)
    click.echo("| command | seconds |\n|---|---:|")
    for name, each in spent.items():
        click.echo(f"| {name} | {np.median(each):.2f} |")


if __name__ == "__main__":
    main()
