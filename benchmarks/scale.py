"""What an evaluation costs on 1 to 1,000 devices, simulated from the chunk costs of a real run, and checked against real workers.

    python benchmarks/scale.py RUN ... | --rates BROKEN SURVIVOR SHARE [--check CKPT] [--check-suite NAMES] [--data-dir DIR]
    python benchmarks/scale.py --imagenet [--survivors 0.4] [--decode 200]

A chunk costs what its samples cost: those that break early, and those that survive and go through every stage to the end. Both rates
are fitted to the run's chunks. A data set of any size is then drawn sample by sample with the run's robust accuracy, cut into chunks,
and handed to devices: static (chunk k to device k modulo their number, as torchrun's ranks take them) or balanced (the next chunk to
whoever is free, as Ray does). Devices differ in speed by a lognormal factor.

``--imagenet`` takes the rates of an H100 from counted operations in place of a run, see ``imagenet_costs``.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from heapq import heapify, heapreplace
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

from robench.evaluation.results import read_results
from robench.evaluation.run_folder import CLEAN, read_chunk, read_run, split
from robench.types import Outcome

DEVICES = (1, 2, 8, 64, 256, 1000)
SIZES = {"10,000": 10_000, "50,000": 50_000, "a million": 1_000_000}
SPREAD = 0.1  # standard deviation of the logarithm of a device's speed
IMAGENET_SIZES, CARDS, CHUNK = (5_000, 50_000), (1, 8), 250


@dataclass(frozen=True)
class Rates:
    """Seconds per sample that breaks (or is wrong before), seconds per survivor, and the share of survivors."""

    broken: float
    survivor: float
    share: float

    def chunks(self, n: int, size: int, generator: np.random.Generator) -> np.ndarray:
        """Seconds of each chunk of a data set of n samples."""
        sizes = np.array([chunk.stop - chunk.start for chunk in split(n, size)])
        survivors = generator.binomial(sizes, self.share)
        return survivors * self.survivor + (sizes - survivors) * self.broken

    def span(self, n: int, devices: int) -> float:
        """Seconds until the last of some equal devices is done with n samples, the share of survivors the same in every chunk."""
        sizes = np.array([chunk.stop - chunk.start for chunk in split(n, CHUNK)])
        costs = sizes * (self.share * self.survivor + (1 - self.share) * self.broken)
        return makespan(costs, np.ones(devices), balanced=False)


def fit(runs: list[Path], column: str) -> Rates:
    """Rates of the finished chunks of runs, by non-negative least squares.

    Args:
        runs: run folders.
        column: the suite whose chunks are looked at, or what its name begins with.
    """
    from scipy.optimize import nnls

    rows, seconds, survivors, samples = [], [], 0, 0
    for run in runs:
        described = read_run(run)
        (suite,) = (suite for suite in described["suites"] if suite["name"].startswith(column))
        for chunk in split(described["n"], described["spec"]["chunk"]):
            files = [run / "chunks" / member["folder"] / f"{chunk.name}.npz" for member in suite["members"]]
            if all(file.exists() for file in files):
                stages = [read_chunk(file) for file in files]
                left = int((stages[-1].outcome == Outcome.ROBUST).sum())
                rows.append([len(stages[-1].outcome) - left, left])
                seconds.append(sum(stage.seconds for stage in stages))
                survivors, samples = survivors + left, samples + sum(rows[-1])
    (broken, survivor), _ = nnls(np.array(rows, float), np.array(seconds))
    return Rates(broken, survivor, survivors / samples)


def makespan(costs: np.ndarray, speeds: np.ndarray, *, balanced: bool) -> float:
    """When the last device is done."""
    if not balanced:
        return max(costs[place :: len(speeds)].sum() / speed for place, speed in enumerate(speeds))
    free = [(0.0, place) for place in range(len(speeds))]
    heapify(free)
    for cost in costs:
        when, place = free[0]
        heapreplace(free, (when + cost / speeds[place], place))
    return max(when for when, _ in free)


def simulate(rates: Rates) -> None:
    click.echo("| data | devices | chunk | static | idle | balanced | idle |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, n in SIZES.items():
        for devices in DEVICES:
            for size in (50, 250, 1000):
                generator = np.random.default_rng(0)
                costs = rates.chunks(n, size, generator)
                if size != 250 and devices not in (64, 1000):
                    continue
                speeds = np.exp(SPREAD * generator.standard_normal(devices)) if devices > 1 else np.ones(1)
                cells = []
                for balanced in (False, True):
                    span = makespan(costs, speeds, balanced=balanced)
                    cells += [duration(span), f"{100 * abs(1 - costs.sum() / (span * speeds.sum())):.0f} %"]
                click.echo(f"| {name} | {devices:,} | {size} | {' | '.join(cells)} |")


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def show_imagenet(survivors: float, pictures: int) -> None:
    """The table of what ImageNet takes, after what it is made of."""
    import imagenet_costs as costs

    for line in costs.provenance(survivors):
        click.echo(line)
    columns = [f"n = {n:,}, {cards} card{'s' * (cards > 1)}" for n in IMAGENET_SIZES for cards in CARDS]
    click.echo(f"Time, in chunks of {CHUNK} as torchrun's ranks take them, cards of one speed:\n")
    click.echo(f"| model | passes | suite | images/s a card | {' | '.join(columns)} |\n|---|---|---|---:|{'---:|' * len(columns)}")
    speeds, busiest = costs.speeds(), 0.0
    for model, torchvisions in costs.MODELS.items():
        operations = costs.count_of(torchvisions)
        for passes in costs.SHOWN:
            for name, suite in costs.suites().items():
                broken, survivor = (operations.of(each) / speeds[passes] for each in (suite.broken, suite.survivor))
                rates = Rates(broken, survivor, survivors)
                rate = 1 / (survivors * survivor + (1 - survivors) * broken)
                busiest = max(busiest, rate)
                spans = [rates.span(n, cards) for n in IMAGENET_SIZES for cards in CARDS]
                click.echo(f"| {model} | {passes} | {name} | {rate:.2g} | {' | '.join(map(duration, spans))} |")
    if pictures:
        per_second, size = costs.pictures_per_second(pictures)
        click.echo(
            f"\nReading ({pictures} JPEGs of 500x375, {size / 1000:.0f} kB, resize 256, crop 224; one core's own time; Pillow {version('pillow')}): "
            f"{per_second:.0f} images/s. The fastest row attacks {busiest:.0f} images/s on a card. Each is read twice, without attack and for it: "
            f"{2 * busiest / per_second:.2f} cores a card."
        )


def check(ckpt: Path, data_dir: Path | None, n: int, column: str) -> None:
    """Real processes against the prediction from the one-process run's own chunk seconds."""
    command = ["--ckpt", str(ckpt), "--suite", column, "-n", str(n), "--batch-size", "25", "--threads", "1"]
    command += ["--data-dir", str(data_dir)] if data_dir else []
    cores = len(os.sched_getaffinity(0))
    click.echo("| workers | chunks by | predicted s | measured s | measured / predicted |\n|---:|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        costs = None
        for how in ("ranks", "ray"):
            for workers in (1, 2, 3):
                out = Path(scratch) / f"{how}-{workers}"
                seconds = run_ranks(command, out, workers) if how == "ranks" else run_ray(command, out, workers)
                if costs is None:
                    ledger = read_results(out).ledger
                    costs = ledger[ledger["attack"] != CLEAN].groupby("chunk")["seconds"].sum().to_numpy()
                    costs = costs * seconds / costs.sum()  # the engine's own checks with them
                speeds = np.full(workers, min(1.0, cores / workers))
                predicted = makespan(costs, speeds, balanced=how == "ray")
                click.echo(f"| {workers} | {how} | {predicted:.1f} | {seconds:.1f} | {seconds / predicted:.2f} |")


def run_ranks(command: list[str], out: Path, workers: int) -> float:
    """Seconds from the first chunk that any process stored to the end."""
    started = []
    for rank in range(workers):
        ranks = {"RANK": rank, "WORLD_SIZE": workers, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": workers}
        environment = os.environ | {name: str(value) for name, value in ranks.items()}
        arguments = [sys.executable, "-m", "robench", "attack", *command, "--out", str(out)]
        started.append(subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for process in started:
        assert process.wait() == 0
    return span_of(out)


def run_ray(command: list[str], out: Path, workers: int) -> float:
    import ray

    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": workers, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    )
    try:
        arguments = [sys.executable, "-m", "robench", "attack", *command, "--out", str(out), "--ray", nodes.address]
        started = time.perf_counter()
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert time.perf_counter() > started and ray is not None
    finally:
        nodes.shutdown()
    return span_of(out)


def span_of(out: Path) -> float:
    """Seconds between the last clean chunk and the last chunk of all, by the files' times."""
    clean = max(path.stat().st_mtime for path in (out / "chunks" / CLEAN).iterdir())
    return max(path.stat().st_mtime for path in (out / "chunks").rglob("*.npz")) - clean


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--column", default="autoattack", show_default=True, help="The suite whose chunks are looked at.")
@click.option(
    "--rates", type=(float, float, float), help="Seconds per broken sample, per survivor, share of survivors; in place of runs."
)
@click.option("--check", "ckpt", type=click.Path(path_type=Path), help="A checkpoint to run with 1, 2 and 3 real workers.")
@click.option("--check-n", default=200)
@click.option("--check-suite", default="pgd20,autoattack-screened")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--imagenet", is_flag=True, help="Hours of ImageNet on H100s, from counted operations.")
@click.option("--survivors", default=0.4, show_default=True, help="With --imagenet: the share of the samples that survive.")
@click.option("--decode", "pictures", default=0, help="With --imagenet: time the reading of so many JPEGs on this machine.")
def main(runs, column, rates, ckpt, check_n, check_suite, data_dir, imagenet, survivors, pictures):
    if imagenet:
        show_imagenet(survivors, pictures)
        return
    rates = Rates(*rates) if rates else fit(list(runs), column)
    click.echo(
        f"From {', '.join(run.name for run in runs) or 'given rates'}: {1000 * rates.broken:.1f} ms per sample that breaks, {1000 * rates.survivor:.0f} ms per "
        f"survivor, {100 * rates.share:.1f} % survive; device speeds spread by {100 * SPREAD:.0f} %.\n"
    )
    simulate(rates)
    if ckpt:
        click.echo()
        check(ckpt, data_dir, check_n, check_suite)


if __name__ == "__main__":
    main()
