"""Whether the audit says the same with another attack seed: every control, several seeds, and what differed.

python benchmarks/audit.py --seeds 5 -n 60
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from robench.audit.controls import CONTROLS, Bench
from robench.audit.selftest import audit_control
from robench.data import load_dataset
from robench.evaluation.device import use_device
from robench.report.markdown import table


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("-n", default=60, show_default=True, help="Test samples.")
@click.option("--full", is_flag=True, help="The whole panel [default: --quick's].")
@click.option("--threads", type=int)
@click.option("--only", multiple=True, help="Names of controls [default: all].")
def main(seeds, n, full, threads, only):
    with use_device("cpu", threads), TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bench = Bench(load_dataset("digits", "train"), load_dataset("digits", "test"), folder / "models")
        rows = []
        for name in only or CONTROLS:
            outcomes = [
                audit_control(name, bench, folder / f"{name}-{seed}", n=n, seed=seed, quick=not full) for seed in range(seeds)
            ]
            rows.append(row(name, outcomes))
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
    print(table(["control", "verdicts", "% left", "wrong about it", "checks that differ between seeds", "s an audit"], rows))


def row(name, outcomes):
    levels = [{finding.check: finding.level for finding in outcome.audit.findings} for outcome in outcomes]
    differ = [
        f"{check} ({'/'.join(sorted({each[check] for each in levels}))})"
        for check in levels[0]
        if len({each[check] for each in levels}) > 1
    ]
    verdicts = [outcome.audit.verdict for outcome in outcomes]
    left = [100 * verdict.most / verdict.n for verdict in verdicts]
    seconds = sorted(outcome.audit.seconds for outcome in outcomes)[len(outcomes) // 2]
    return [
        name,
        ", ".join(
            f"{verdict} {sum(each.word == verdict for each in verdicts)}" for verdict in sorted({each.word for each in verdicts})
        ),
        f"{min(left):.1f} to {max(left):.1f}",
        f"{sum(bool(outcome.complaint) for outcome in outcomes)} of {len(outcomes)}",
        ", ".join(differ) or "none",
        f"{seconds:.0f}",
    ]


if __name__ == "__main__":
    main()
