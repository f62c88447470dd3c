"""The command line: parse, one library call, print. Libraries are imported inside the commands, so that --help is instant."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import click

import robench
from robench.types import RobenchError

INTERRUPTED = 130


class _Commands(click.Group):
    """Turns the user's mistakes into one line and exit code 1, and Ctrl-C into exit code 130."""

    def invoke(self, ctx: click.Context):
        # OpenMP's waiting threads otherwise spin, and take the cores from whatever else runs on the machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            return super().invoke(ctx)
        except RobenchError as error:
            click.echo(f"robench: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("\nrobench: interrupted; everything finished is kept, the same command goes on from there", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(robench.__version__, prog_name="robench")
def main() -> None:
    """Train multi-head image classifiers, attack any classifier, and say whether the robustness number is real."""


def _shared(command):
    """Options that training and attacking have in common."""
    options = [
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores]."),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Where data sets lie [default: $ROBENCH_DATA, else the cache]."
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@main.command()
@click.option("--arch", required=True, help="single, supervised or contrastive.")
@click.option(
    "--dataset", required=True, help="A name of `robench list datasets`, or a folder with one sub-folder of images per class."
)
@click.option("--recipe", default="paper", show_default=True, help="paper (its text) or authors (their code).")
@click.option(
    "--adversarial", default="none", show_default=True, help="none, nfgsm or pgd: adversarial training, the positive control."
)
@click.option("--train-eps", help="Linf radius of adversarial training [default: the data set's].")
@click.option("--backbone", help="resnet18, resnet18-cifar or small [default: resnet18].")
@click.option("--views", help="standard (crop, flip) or simclr [default: the variant's].")
@click.option("--lambda-main", type=float, help="Weight of the main task's loss [default: the recipe's].")
@click.option("--lambda-aux", type=float, help="Weight of the second head's loss [default: the recipe's].")
@click.option("--temperature", type=float, help="Of the contrastive loss [default: 0.07].")
@click.option("--epochs", type=int, help="[default: 100]")
@click.option("--batch-size", type=int, help="[default: 256]")
@click.option("--lr", type=float, help="[default: 3e-4]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--precision", help="fp32 or bf16; bf16 is slow on processors that lack it [default: fp32].")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Checkpoint path [default: checkpoints/DATASET-ARCH[-ADVERSARIAL]-SEED.safetensors].",
)
@_shared
def train(arch, dataset, recipe, adversarial, out, device, threads, data_dir, **chosen) -> None:
    """Train one of the paper's variants; the same command continues after a kill.

    Under torchrun, several processes share each batch.
    """
    from robench.data import load_dataset
    from robench.evaluation.device import own_device, own_threads, use_device
    from robench.processes import Processes
    from robench.training import TrainSpec, check_names, joined
    from robench.training import train as run_training

    check_names(arch, recipe, adversarial)  # before anything is downloaded
    train_set = load_dataset(dataset, "train", data_dir)
    spec = TrainSpec.of(arch, train_set, recipe=recipe, adversarial=adversarial, **chosen)
    test_set, here = load_dataset(dataset, "test", data_dir), Processes.here()
    with use_device(own_device(device, here), threads or own_threads(here)) as chosen_device, joined(here, chosen_device) as ranks:
        path = run_training(spec, train_set, test_set, out=out, device=chosen_device, ranks=ranks)
    if here.rank == 0:
        print_clean_accuracy(path)


def print_clean_accuracy(path: Path) -> None:
    """The last line of ``robench train``: where the model is and how it does without attack."""
    from robench.checkpoint import read_description

    accuracy = read_description(path)["clean_accuracy"]
    click.echo(f"{path}  clean accuracy: " + ", ".join(f"{head} {value:.2%}" for head, value in accuracy.items()))


@main.command()
@click.option("--ckpt", type=click.Path(path_type=Path), help="A checkpoint of `robench train`.")
@click.option(
    "--model", help="FILE.py:FACTORY instead: a function that returns any module which takes [0, 1] images. Runs the file."
)
@click.option(
    "--suite",
    help="Names of `robench list attacks` and `suites`, comma-separated; NAME@FILE crafts on another checkpoint (transfer) "
    "[default: pgd20,autoattack].",
)
@click.option("--norm", default="Linf", show_default=True, help="Linf or L2.")
@click.option("--eps", help="Radius in pixel units, such as 8/255 [default: the data set's own].")
@click.option("-n", "--n", type=int, help="The first N test samples [default: all]; under torchrun write -n.")
@click.option("--step-size", help="Of PGD, such as 2/255 [default: eps/4].")
@click.option("--restarts", type=int, default=1, show_default=True, help="Random starts of PGD.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
@click.option(
    "--batch-size",
    "chunk",
    default="auto",
    show_default=True,
    help="Samples a chunk; auto: 250. Where memory runs out, a chunk goes through the model in smaller passes.",
)
@click.option("--attack-heads", help="Craft on another head than the judged one, or on all: main, joint, coarse, projection.")
@click.option("--head", default="main", show_default=True, help="The head that is judged.")
@click.option("--save-adv", is_flag=True, help="Keep the adversarial images in the run folder, for `robench verify` and --adv.")
@click.option("--adv", multiple=True, help="Evaluate stored images too: a .pt file, or RUN:ATTACK of a run with --save-adv.")
@click.option("--share/--no-share", default=True, show_default=True, help="Let the steps of pgd50 serve pgd7 and pgd20 too.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    help="Hand chunks to Ray: the address of a cluster, or nothing for one on this machine (pip install 'robench[ray]').",
)
@click.option("--dataset", help="A name of `robench list datasets`, or a folder [default: the checkpoint's own].")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [default: reports/CHECKPOINT-NORM-EPS].")
@_shared
def attack(ckpt, model, dataset, data_dir, device, threads, out, ray, chunk, attack_heads, **asked) -> None:
    """Attack a checkpoint, or any module; the same command continues after a kill.

    Exits with 1 where an attack failed on samples: the rest of the table stands.
    """
    from robench.api import AttackRequest, parse_chunk
    from robench.api import attack as run_attack

    _warn_of_clash()
    request = AttackRequest(**asked, chunk=parse_chunk(chunk), attack_heads=attack_heads or asked["head"])
    run = run_attack(
        request, ckpt=ckpt, model=model, dataset=dataset, data_dir=data_dir, device=device, threads=threads, out=out, ray=ray
    )
    if run is None:
        click.echo("robench: this process's share is finished; whoever finishes last writes the tables", err=True)
    else:
        _print_run(run)


@main.command()
@click.option("--ckpt", type=click.Path(path_type=Path), help="A checkpoint of `robench train`.")
@click.option(
    "--model", help="FILE.py:FACTORY instead: a function that returns any module which takes [0, 1] images. Runs the file."
)
@click.option("--claim", type=float, help="Robust accuracy to judge, such as 0.606 [default: what FGSM and PGD-20 report].")
@click.option("--claim-protocol", "protocol", default="unknown", show_default=True, help="white-box, transfer or unknown.")
@click.option(
    "--adv", multiple=True, help="Stored images that the number came from: a .pt file, or RUN:ATTACK of a run with --save-adv."
)
@click.option("--source", type=click.Path(path_type=Path), help="The checkpoint that the .pt files of --adv were crafted on.")
@click.option(
    "--sibling",
    "siblings",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A checkpoint of the same classes, to transfer images from.",
)
@click.option("--norm", default="Linf", show_default=True, help="Linf or L2.")
@click.option("--eps", help="Radius in pixel units, such as 8/255 [default: the data set's own].")
@click.option("-n", "--n", type=int, help="The first N test samples [default: 1000, with --quick 200].")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
@click.option(
    "--budget",
    type=float,
    default=3.0,
    show_default=True,
    help="Of the stronger attacks that findings call for, in multiples of AutoAttack's cost a surviving sample.",
)
@click.option("--head", default="main", show_default=True, help="The head that is judged.")
@click.option("--quick", is_flag=True, help="A first answer from few samples and attacks: it can refute, not support.")
@click.option(
    "--self-test",
    is_flag=True,
    help="Audit models that are built to cheat, and honest ones, instead: on digits, or wrapped around --ckpt.",
)
@click.option("--dataset", help="A name of `robench list datasets`, or a folder [default: the checkpoint's own].")
@click.option("--out", type=click.Path(path_type=Path), help="Folder [default: reports/audit-NAME].")
@_shared
def audit(ckpt, model, dataset, data_dir, device, threads, out, self_test, **asked) -> None:
    """Judge a robustness number: is it real, and why not?

    Runs a panel of attacks and checks, follows what they find with stronger attacks, and writes audit.md and findings.json. Exits with
    3 where a check fails or the number is refuted; the same command continues after a kill.
    """
    if self_test:
        _run_self_test(out or Path("reports/audit"), asked["n"], asked["seed"], threads, ckpt, data_dir)
        return
    from robench.audit import AuditRequest
    from robench.audit import audit as run_audit
    from robench.audit.verdict import REFUTED, verdict_line
    from robench.types import Level

    found = run_audit(
        AuditRequest(**asked), ckpt=ckpt, model=model, dataset=dataset, data_dir=data_dir, device=device, threads=threads, out=out
    )
    click.echo(verdict_line(found.verdict).replace("**", ""))
    for finding in found.findings:
        if finding.level in (Level.FAIL, Level.WARN):
            click.echo(f"{finding.level}: {finding.check}: {finding.says} ({finding.evidence})")
    click.echo(found.path)
    if found.verdict.word == REFUTED or any(finding.level == Level.FAIL for finding in found.findings):
        click.get_current_context().exit(3)


def _run_self_test(out: Path, n: int | None, seed: int, threads: int | None, ckpt: Path | None, data_dir: Path | None) -> None:
    """The audit's controls; exit code 1 where it is wrong about one."""
    from robench.audit.selftest import SAMPLES, self_test
    from robench.evaluation.device import use_device

    with use_device("cpu", threads):
        page, complaints = self_test(out, n=SAMPLES if n is None else n, seed=seed, ckpt=ckpt, data_dir=data_dir)
    for complaint in complaints:
        click.echo(f"robench: {complaint}", err=True)
    click.echo(page)
    if complaints:
        click.get_current_context().exit(1)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--ckpt", type=click.Path(path_type=Path), help="The model [default: where the run found it].")
@click.option("--model", help="FILE.py:FACTORY instead. Runs the file.")
@click.option("--dataset", help="A name of `robench list datasets`, or a folder [default: the run's].")
@_shared
def verify(run, **where) -> None:
    """Replay a run's stored adversarial images against the model, without any attack.

    Says what still holds in float32, in float64, one image at a time, and after rounding to 8 bits. Exits with 1 where the weights
    or the images are not those of the run, or a claim does not hold in float32.
    """
    from robench.api import verify as replay
    from robench.report.markdown import replay_table

    replays, changed = replay(run, **where)
    click.echo(replay_table(replays))
    failed = [each.attack for each in replays if not each.holds]
    if changed:
        click.echo(f"robench: this is not the model that was attacked: {changed}", err=True)
    if failed:
        click.echo(f"robench: not confirmed: {', '.join(failed)}; see the columns tampered, missing and float32", err=True)
    if changed or failed:
        click.get_current_context().exit(1)
    click.echo(f"{run}: every broken sample is broken again, by the stored images and the weights that the run names")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write a run's tables and figures again, from its verdicts alone."""
    from robench.report import write_report

    write_report(run)
    _print_run(run)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the table to this markdown file too.")
def compare(runs: tuple[Path, ...], out: Path | None) -> None:
    """Put several runs on the same data and threat model into one table."""
    from robench.report.compare import compare_runs

    click.echo(compare_runs(list(runs), out))
    if out:
        click.echo(out)


@main.command()
@click.option("--table", type=click.Choice(["1", "2", "all"]), default="all", show_default=True, help="1: CIFAR-10, 2: CIFAR-100.")
@click.option("--epochs", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--adversarial-epochs", type=click.IntRange(min=1), help="Of the adversarially trained controls [default: --epochs].")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each of the paper's models.")
@click.option("--recipe", default="paper", show_default=True, help="paper (its text) or authors (their code).")
@click.option("-n", "--n", type=click.IntRange(min=1), help="Test samples [default: all].")
@click.option(
    "--ranks",
    type=click.IntRange(1, 4),
    default=4,
    show_default=True,
    help="1: the paper's models; 2: controls; 3: adversarial; 4: seeds.",
)
@click.option("--quick", is_flag=True, help="The same pipeline on handwritten digits, in minutes.")
@click.option("--weights", type=click.Path(path_type=Path), help="Final models, float16 [default: checkpoints/paper].")
@click.option("--out", type=click.Path(path_type=Path), help="[default: reports/paper]")
@_shared
def reproduce(table, epochs, adversarial_epochs, seeds, recipe, n, ranks, quick, weights, out, **where) -> None:
    """Do the paper's two experiments again, under its protocol and under the right one.

    Trains, attacks and reports whatever is missing; the same command continues after a kill.
    """
    if quick:
        _refuse_with_quick("table", "epochs", "adversarial_epochs", "seeds", "recipe", "n", "ranks")
    from robench.reproduce import QUICK, Settings
    from robench.reproduce import reproduce as run
    from robench.reproduce.plan import TABLES

    settings = QUICK if quick else Settings(TABLES[table], epochs, adversarial_epochs or epochs, seeds, recipe, n, ranks=ranks)
    name = "quick" if quick else "paper"
    click.echo(run(settings, out=out or Path("reports") / name, weights=weights or Path("checkpoints") / name, **where))


def _refuse_with_quick(*names: str) -> None:
    context = click.get_current_context()
    given = [name for name in names if context.get_parameter_source(name) != click.core.ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"--quick has settings of its own; leave --{given[0].replace('_', '-')} out")


@main.command("list")
@click.argument("kind", type=click.Choice(["attacks", "suites", "datasets", "archs"]))
def list_names(kind: str) -> None:
    """Show what can be named: attacks, suites, datasets or archs."""
    for name, about in _known(kind).items():
        click.echo(f"{name:<16}{about}")


def _known(kind: str) -> dict[str, str]:
    if kind == "datasets":
        from robench.data import DATASETS

        return {name: entry.about for name, entry in DATASETS.items()}
    if kind == "archs":
        from robench.training.objectives import OBJECTIVES

        return {name: entry.about for name, entry in OBJECTIVES.items()}
    from robench.attacks import ATTACKS, SUITES

    if kind == "suites":
        return {name: f"{entry.about} ({', '.join(entry.members)})" for name, entry in SUITES.items()}
    return {shown: entry.about for entry in ATTACKS.values() for shown in entry.shown}


def _print_run(run: Path) -> None:
    """The table, what failed, and last the report's path; exit code 1 where an attack failed."""
    from robench.evaluation.results import failures, read_results
    from robench.report.markdown import terminal_table
    from robench.report.tables import summarise

    results = read_results(run)
    click.echo(terminal_table(summarise(results)))
    failed = failures(results)
    for line in failed:
        click.echo(f"robench: attack failed: {line}", err=True)
    click.echo(run / "report.md")
    if failed:
        click.get_current_context().exit(1)


def _warn_of_clash() -> None:
    from robench.adapters.robustbench import clash_warning

    warning = clash_warning()
    if warning:
        click.echo(f"robench: warning: {warning}", err=True)


if __name__ == "__main__":
    sys.exit(main())
