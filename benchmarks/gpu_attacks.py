"""The attacks of ``gpu.py``: robench's columns and the libraries' own, and whether they leave the same samples."""

import sys
from contextlib import redirect_stdout

import numpy as np
import torch
from gpu_bench import WAYS, brought, cell, heading, row
from verdicts import authors_driver, torchattacks_attack

from robench.attacks import AttackOptions, parse_columns
from robench.evaluation.engine import ColumnGroup, Job, compute
from robench.evaluation.run_folder import CLEAN, Chunk, chunk_seed
from robench.models.seeded import seeded
from robench.types import Outcome, PassOptions, ThreatModel

THREAT = ThreatModel("Linf", 8 / 255)


def ours(bench, classifier, name, precision, record, **options):
    """A call of one of robench's columns as the engine makes it, on all images in one chunk: who is left."""
    passes = PassOptions(precision=precision, **options)

    def run():
        images, labels, chunk = bench.images, bench.labels, Chunk(0, len(bench.images))
        (column,) = parse_columns(name, THREAT, classifier.n_classes, AttackOptions(pass_options=passes))
        job = Job(classifier, THREAT, 0, graphed=record)
        known = {CLEAN: next(compute(job, ColumnGroup(()), images, labels, chunk, {}))[1]}
        *_, last = (made.verdicts for made in compute(job, ColumnGroup((column,)), images, labels, chunk, known))
        return np.asarray(last.outcome == Outcome.ROBUST)

    return run


def theirs(bench, classifier, attack, family):
    """A call of a library by itself, on what is right without attack, with the seed that robench's column gives it."""

    def run():
        with torch.no_grad():
            robust = classifier(bench.images).argmax(1) == bench.labels
        with seeded(chunk_seed(0, family, Chunk(0, len(bench.images))), bench.images.device):
            adv_images = attack(classifier, bench.images[robust], bench.labels[robust])
        with torch.no_grad():
            robust[robust.clone()] = classifier(adv_images.detach()).argmax(1) == bench.labels[robust]
        return robust.cpu().numpy()

    return run


def fast(bench):
    heading("attack", *WAYS, "graphed, bf16")
    cold, warm = [], []
    ways = WAYS | {"graphed, bf16": ("bf16", True)}
    for way in ("graphed", "graphed, TF32", "eager", "graphed, bf16"):  # the first pays for what libraries settle in this process
        work = ours(bench, bench.make(), "fast", *ways[way])
        cold.append((way, cell(bench, f"fast, {way}", work, repeats=1)))
        warm.append((way, cell(bench, f"fast, {way}", work)))
    for named, cells in (("`fast`, first call of a fresh model", cold), ("`fast`, warm", warm)):
        row(named, *(dict(cells)[way] for way in ways))


def pgd(bench):
    heading("attack", *WAYS)
    classifier = bench.make()
    peer = theirs(bench, classifier, lambda *given: torchattacks_attack(*given, THREAT, name="PGD", steps=50), "pgd")
    with brought("torchattacks") as there:
        row("torchattacks PGD-50", cell(bench, "torchattacks PGD-50", peer, repeats=3) if there else "not brought", "", "")
        for options in ({}, {"folded": True}):
            cells = []
            for way, (precision, record) in WAYS.items():
                work = ours(bench, classifier, "pgd50", precision, record, **options)
                cells.append(cell(bench, f"pgd50, {way}", work, repeats=3) if there else "not brought")
            row("`pgd50`" + ", folded" * bool(options), *cells)


def whole_autoattack(bench):
    heading("attack", *WAYS)
    with brought("pyautoattack") as there:
        classifier, cells = bench.make(), {}
        for way, most in (("graphed", 45), ("graphed, TF32", 10), ("eager", 6)):
            work = ours(bench, classifier, "autoattack", *WAYS[way])
            cells[way] = cell(bench, f"autoattack, {way}", work, 2 if bench.quick else most, 1) if there else "not brought"
        row("`autoattack`", *(cells[way] for way in WAYS))
        model = bench.make()

        def peer():
            with redirect_stdout(sys.stderr):
                return authors_driver(model, bench.images, bench.labels, THREAT, Chunk(0, len(bench.images)))

        row(
            "pyautoattack",
            cell(bench, "pyautoattack", peer, 2 if bench.quick else float("inf"), 1) if there else "not brought",
            "",
            "",
        )


def compiled(bench):
    work = ours(bench, bench.make(), "fast", "fp32", False, folded=True, compiled=True)
    row("`fast(compiled)`", "left out with --quick" if bench.quick else cell(bench, "fast(compiled)", work, repeats=1), "", "")


def discordant(bench):
    """Of every two calls that should agree, the samples on which they do not."""
    heading("verdicts", "against", "robust there", "and here", "discordant")
    pairs = [(f"fast, {way}", "fast, eager") for way in ("graphed", "graphed, TF32", "graphed, bf16")]
    pairs += [(f"pgd50, {way}", "torchattacks PGD-50") for way in WAYS]
    pairs += [(f"autoattack, {way}", "pyautoattack") for way in WAYS]
    pairs += [("fast, graphed", "autoattack, graphed"), ("fast, graphed", "pyautoattack")]
    for here, there in pairs:
        if here in bench.robust and there in bench.robust:
            one, other = bench.robust[here], bench.robust[there]
            row(here, there, f"{other.sum()}", f"{one.sum()}", f"{(one != other).sum()}")
        else:
            row(here, there, "", "", "not both finished")
