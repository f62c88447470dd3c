"""Everything that a GPU is asked about robench's speed, in one command of at most four minutes, on a machine without network.

    python benchmarks/gpu.py [--images FILE.png] [--libraries DIR] [--seconds 240]
    python benchmarks/gpu.py --device cpu --quick              # tiny numbers: tries the script, measures nothing
    python benchmarks/gpu.py --write-images FILE.png           # where CIFAR-10 is: the mosaic to send along

Prints markdown as it goes: computed as ever ("eager"), by recorded passes ("graphed"), and by recorded passes in TF32. What its share of the
time does not reach says so. ``benchmarks/README.md`` tells what to send where.
"""

import copy
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from verdicts import authors_driver, torchattacks_attack

from robench import load_dataset
from robench.adapters import autoattack, torchattacks
from robench.attacks import AttackOptions, parse_columns
from robench.data.augment import to_unit
from robench.evaluation.device import use_device
from robench.evaluation.engine import ColumnGroup, Job, compute
from robench.evaluation.environment import describe_environment
from robench.evaluation.run_folder import CLEAN, Chunk, chunk_seed
from robench.models.arithmetic import arithmetic
from robench.models.classifier import Classifier, Passes
from robench.models.graphed import graphed
from robench.models.multihead import MAIN_HEAD, HeadLogits, MultiHead
from robench.models.rewrite import cheaper_twin
from robench.models.seeded import seeded
from robench.models.subject import classifier_of_checkpoint
from robench.training.captured import graph_for
from robench.training.loop import Loop, adam
from robench.training.objectives import OBJECTIVES
from robench.training.recipes import RECIPES
from robench.training.spec import TrainSpec
from robench.training.state import StateFile
from robench.types import NO_REWRITE, Dataset, Outcome, PassOptions, ThreatModel

THREAT = ThreatModel("Linf", 8 / 255)
TRAINED = Path(__file__).parents[1] / "checkpoints" / "paper" / "cifar10-single-nfgsm-0.safetensors"
TILE = 32
WAYS = {"eager": ("fp32", False), "graphed": ("fp32", True), "graphed, TF32": ("tf32", True)}
VARIANTS = {
    "own, fp32": NO_REWRITE, "folded, fp32": PassOptions(folded=True), "folded, TF32": PassOptions(folded=True, precision="tf32"),
    "folded, bf16": PassOptions(folded=True, precision="bf16"),
}  # fmt: skip
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cuGraphLaunch", "cudaLaunchCooperative")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIES = ("cudaMemcpy",)


class TimeOver(BaseException):
    """Ends a call from inside the model; no Exception, so that no attack and no engine takes it for a result."""


@contextmanager
def limited(deadline):
    """Counts the samples that go through any classifier inside the block, and ends it at the first pass behind ``deadline``."""
    total, forward = Passes(), Classifier.forward

    def note(gradient):
        total.backwards += len(gradient)

    def counting(self, images):
        if time.perf_counter() > deadline:
            raise TimeOver
        logits = forward(self, images)
        total.forwards += len(images)
        if logits.requires_grad:
            logits.register_hook(note)
        return logits

    Classifier.forward = counting
    try:
        yield total
    finally:
        Classifier.forward = forward


class Bench:
    """The model, the images and the time.

    Args:
        make: a fresh classifier on the device: nothing is rewritten or recorded of it yet.
        images, labels: (N, C, H, W) and (N,), on the device.
        device: its name.
        quick: tiny numbers.
    """

    def __init__(self, make, images, labels, device, quick):
        self.make, self.images, self.labels, self.device, self.quick = make, images, labels, device, quick
        self.sizes = (2, 4) if quick else (32, 128, 256, 1024)
        self.deadline = float("inf")  # of the part that runs
        self.robust = {}  # by what was run: who was left

    @property
    def left(self):
        return self.deadline - time.perf_counter()

    def wait(self):
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def seconds(self, work):
        """Of one call, until the device is done, and what it returned."""
        self.wait()
        started = time.perf_counter()
        found = work()
        self.wait()
        return time.perf_counter() - started, found

    def cut(self, work, most=float("inf")):
        """(seconds, units, what it returned or None where the time was over) of a call of at most so many seconds."""
        started, found = time.perf_counter(), None
        with limited(min(self.deadline, started + most)) as passes:
            try:
                found = work()
                self.wait()
            except TimeOver:
                pass
        return time.perf_counter() - started, passes.forwards + 2 * passes.backwards, found


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


def row(what, *cells):
    click.echo(f"| {what} | {' | '.join(cells)} |")


def heading(*names):
    click.echo("\n" + f"| {' | '.join(names)} |\n|---|" + "---:|" * (len(names) - 1))


OVER = "time over"


def cell(bench, key, work, most=float("inf"), repeats=2):
    """The fastest of some warm calls; where it was cut, the rate until then."""
    if bench.left <= 0:
        return OVER
    best = float("inf")
    for again in range(1 if bench.quick else repeats):
        if again and bench.left <= 0:
            break
        seconds, units, found = bench.cut(work, most)
        if found is None:
            break
        bench.robust[key], best = found, min(best, seconds)
    if best < float("inf"):
        return f"{best:.2f} s, {int(bench.robust[key].sum())} left"
    return f"cut off after {seconds:.1f} s: {units / seconds:,.0f} units/s"


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


@contextmanager
def brought(library):
    """Whether a library can be imported here."""
    try:
        __import__(library)
    except ImportError:
        yield False
    else:
        yield True


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

        row("pyautoattack", cell(bench, "pyautoattack", peer, 2 if bench.quick else float("inf"), 1) if there else "not brought", "", "")


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


def passes(bench):
    heading("images/s, eager -> graphed", *(f"n = {n:,}" for n in bench.sizes))
    for needs in ("gradient", "forward"):
        for name, options in VARIANTS.items():
            twin = cheaper_twin(bench.make(), options, bench.images)
            cells = []
            for n in bench.sizes:
                images = bench.images[torch.arange(n, device=bench.images.device) % len(bench.images)]
                with arithmetic(options.precision, bench.device):
                    rates = [pass_rate(bench, twin, images, needs == "gradient", record) for record in (False, True)]
                cells.append(" -> ".join(OVER if rate is None else f"{rate:,.0f}" for rate in rates))
            row(f"{name}: {needs}", *cells)


def pass_rate(bench, twin, images, gradient, record):
    """Images a second; None where the time is over."""

    def one():
        with torch.set_grad_enabled(gradient):
            queries = images.clone().requires_grad_(gradient)
            logits = twin(queries)
            return torch.autograd.grad(logits.sum(), queries)[0] if gradient else logits

    if bench.left <= 0:
        return None
    with graphed(twin) if record else nullcontext():
        for _ in range(3):
            one()
        once, _ = bench.seconds(one)
        calls = 1 if bench.quick else max(3, min(200, int(0.25 / max(once, 1e-5))))
        seconds, _ = bench.seconds(lambda: [one() for _ in range(calls)])
    return calls * len(images) / seconds


def random_set(batch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4 * batch, 3, TILE, TILE), dtype=torch.uint8, generator=generator)
    return Dataset("random", "train", images, torch.arange(4 * batch) % 10, tuple("0123456789"))


def loop_of(device, arch, precision, record, quick):
    """A training of a variant, whose steps are to be taken, with a batch."""
    batch = 8 if quick else 256
    data = random_set(batch)
    spec = TrainSpec.of(arch, data, precision=precision, batch_size=batch, **({"backbone": "small"} if quick else {}))
    model = MultiHead(spec.backbone, OBJECTIVES[arch].heads(data, RECIPES[spec.recipe])).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    loop = Loop(spec, model, adam(model, spec, device), data, device, graph=graph_for(device) if record else None)
    return loop, torch.arange(batch, device=device), torch.Generator(device).manual_seed(0)


def step_rate(device, arch, precision, record, quick, seconds, begin=None):
    """Images a second of training steps, and whether they were captured.

    Args:
        begin: when to begin after the warm-up, by ``time.time``; at once by default.
    """
    loop, batch, generator = loop_of(device, arch, precision, record, quick)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    with arithmetic(precision, device):
        for _ in range(2 if quick else 10):
            loop.step(batch, generator)
        wait()
        time.sleep(max(0.0, begin - time.time()) if begin else 0)
        started, steps = time.perf_counter(), 0
        while steps < 2 or (not quick and time.perf_counter() - started < seconds):
            for _ in range(1 if quick else 10):
                loop.step(batch, generator)
                steps += 1
            wait()
    return steps * len(batch) / (time.perf_counter() - started), loop.captured is not None


def training(bench):
    heading("training step", *WAYS)
    for arch in ("single", "contrastive"):
        cells = []
        for precision, record in WAYS.values():
            if bench.left <= 0:
                cells.append(OVER)
                continue
            rate, was = step_rate(bench.device, arch, precision, record, bench.quick, 2.0)
            cells.append(f"{rate:,.0f} images/s" + (" (not captured)" if record and not was else ""))
        row(arch, *cells)


def at_once(bench):
    """Several trainings as processes on one device."""
    arches = ["single", "contrastive"] if bench.quick else ["single", "single", "contrastive", "contrastive"]
    cells = {}
    for way in ("graphed", "eager", "graphed, TF32"):
        needed = 0 if bench.quick else 25
        cells[way] = OVER if bench.left <= needed else " + ".join(rates_at_once(bench, arches, way))
    row(f"at once: {', '.join(arches)}", *(cells[way] for way in WAYS))


def rates_at_once(bench, arches, way):
    begin = time.time() + (0 if bench.quick else 18)
    command = [sys.executable, __file__, "--device", bench.device, "--way", way, "--begin", str(begin), *["--quick"] * bench.quick]
    children = [subprocess.Popen([*command, "--train", arch], stdout=subprocess.PIPE, text=True) for arch in arches]
    try:
        return [f"{float(child.communicate(timeout=max(10.0, bench.left + 10))[0]):,.0f}" for child in children]
    except (subprocess.TimeoutExpired, ValueError):
        return ["failed or too late"]
    finally:
        for child in children:
            child.kill()


def launches(bench):
    """What the host does for one warm call, by the profiler."""
    on_gpu = bench.device.startswith("cuda")
    heading("a call", *WAYS)
    click.echo(
        "| (" + ("launches, waits and copies by the host; kernels of the device" if on_gpu else "operations, waits") + ") | | | |"
    )
    for name in ("pgd50", "fast"):
        classifier, cells = bench.make(), {}
        for way in ("graphed", "graphed, TF32", "eager"):
            needed = {"pgd50": 3, "fast": 15}[name] * (not bench.quick)
            work = ours(bench, classifier, name, *WAYS[way])
            cells[way] = OVER if bench.left <= needed or bench.cut(work)[2] is None else counted(bench, work, on_gpu)
        row(f"`{name}`", *(cells[way] for way in WAYS))
    cells = []
    for precision, record in WAYS.values():
        if bench.left <= 0:
            cells.append(OVER)
            continue
        loop, batch, generator = loop_of(bench.device, "contrastive", precision, record, bench.quick)
        with arithmetic(precision, bench.device):
            for _ in range(3):
                loop.step(batch, generator)
            cells.append(counted(bench, lambda loop=loop, batch=batch, generator=generator: loop.step(batch, generator), on_gpu))
    row("training step, contrastive", *cells)


def counted(bench, work, on_gpu):
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as seen:
        if bench.cut(work)[2] is None:
            return OVER
    averages = seen.key_averages()
    counts = {each.key: each.count for each in averages}
    if not on_gpu:
        operations = sum(count for key, count in counts.items() if key.startswith("aten::"))
        return f"{operations:,}, {counts.get('aten::_local_scalar_dense', 0) + counts.get('aten::nonzero', 0):,}"
    host = [sum(count for key, count in counts.items() if key.startswith(names)) for names in (LAUNCHES, WAITS, COPIES)]
    on_device = [each for each in averages if each.device_type == DeviceType.CUDA and not each.key.startswith(("Memcpy", "Memset"))]
    return ", ".join(f"{count:,}" for count in host) + f"; {sum(each.count for each in on_device):,}"


def state(bench):
    """Writing what an unfinished training has on disk."""
    if bench.left <= 0:
        row("a training's state, written", OVER, "", "")
        return
    loop, batch, generator = loop_of(bench.device, "single", "fp32", False, bench.quick)
    loop.step(batch, generator)
    with tempfile.TemporaryDirectory() as folder:
        file = StateFile(Path(folder) / "state", {})
        spent = min(bench.seconds(lambda: file.begin(loop.model, loop.optimizer, []))[0] for _ in range(3))
        megabytes = file.path.stat().st_size / 1e6
    kept, _ = bench.seconds(lambda: copy.deepcopy(loop.optimizer.state_dict()) and copy.deepcopy(loop.model.state_dict()))
    row(f"a training's state, {megabytes:,.0f} MB: written, kept on the device", f"{spent:.2f} s", f"{kept:.3f} s", "")


# Each with the share of the time by whose end it is to be done; what one does not need is the next one's.
PARTS = (
    (fast, 0.24), (pgd, 0.30), (passes, 0.46), (training, 0.54), (at_once, 0.68), (state, 0.70), (launches, 0.80), (whole_autoattack, 0.96),
    (compiled, 1.0), (discordant, 1.0),
)  # fmt: skip


def read_mosaic(path):
    """Images uint8 (N, 3, 32, 32) of a picture of tiles, row by row, and labels int64 (N,) of the text file beside it."""
    from PIL import Image

    labels = torch.tensor([int(word) for word in path.with_suffix(".txt").read_text().split()])
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    tiles = pixels.unfold(0, TILE, TILE).unfold(1, TILE, TILE).flatten(0, 1)  # (N, 3, 32, 32)
    return tiles[: len(labels)].contiguous(), labels


def write_mosaic(path, data, n):
    """The first n images of a data set as such a picture, 25 tiles a row, with its labels."""
    from PIL import Image

    images = data.images[:n]
    blank = images.new_zeros(-len(images) % 25, *images.shape[1:])
    tiles = torch.cat([images, blank]).view(-1, 25, 3, TILE, TILE).permute(0, 3, 1, 4, 2)
    Image.fromarray(tiles.reshape(-1, 25 * TILE, 3).numpy()).save(path)
    path.with_suffix(".txt").write_text(" ".join(map(str, data.labels[:n].tolist())) + "\n")


def material(images, ckpt, n, device, quick):
    """What makes a fresh classifier, the images and labels, and what they are, in words."""

    def make():
        if quick and ckpt is None:
            torch.manual_seed(0)
            model = MultiHead("small", OBJECTIVES["single"].heads(random_set(1), RECIPES["paper"]))
            return Classifier(HeadLogits(model, MAIN_HEAD, 10), 10).to(device)
        return classifier_of_checkpoint(ckpt or TRAINED, None, device).classifier

    named = "a small network with random weights" if quick and ckpt is None else (ckpt or TRAINED).stem
    if images is not None:
        pixels, labels = read_mosaic(images)
        pixels, labels = to_unit(pixels[:n]).to(device), labels[:n].to(device)
        return make, pixels, labels, f"{named}, {len(pixels):,} images of {images.name}"
    pixels = to_unit(load_dataset("digits", "train").images[:n]).to(device)
    with torch.no_grad():
        labels = make()(pixels).argmax(1)
    said = "no CIFAR given: digits scaled up, whose labels are what the model says of them"
    return make, pixels, labels, f"{named}, {len(pixels):,} images ({said})"


def bring(libraries):
    """Libraries from a folder, whose versions no installation tells."""
    if libraries is not None:
        sys.path.insert(0, str(libraries))

    def known(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return "of unknown version"

    autoattack.version = torchattacks.version = known
    return ", ".join(f"{package} {known(package)}" for package in ("torchattacks", "pyautoattack"))


@click.command()
@click.option("--device", default="cuda")
@click.option(
    "--images", type=click.Path(path_type=Path), help="A mosaic of 32x32 tiles, with their labels in FILE.txt beside FILE.png."
)
@click.option("--libraries", type=click.Path(path_type=Path), help="A folder that holds torchattacks/ and pyautoattack/.")
@click.option("--ckpt", type=click.Path(path_type=Path), help="[default: the adversarially trained ResNet-18 of checkpoints/paper]")
@click.option("--n", default=1000, help="Images, in one chunk.")
@click.option("--seconds", default=240.0, help="For all of it.")
@click.option("--threads", default=2)
@click.option("--quick", is_flag=True, help="Tiny numbers, to try the script.")
@click.option(
    "--write-images", type=click.Path(path_type=Path), help="Write the mosaic of the first CIFAR-10 test images, and end."
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Of CIFAR-10, for --write-images.")
@click.option("--train", hidden=True)
@click.option("--way", hidden=True)
@click.option("--begin", type=float, hidden=True)
def main(device, images, libraries, ckpt, n, seconds, threads, quick, write_images, data_dir, train, way, begin):
    began = time.perf_counter()
    if write_images is not None:
        write_mosaic(write_images, load_dataset("cifar10", "test", data_dir), n)
        return
    with use_device(device, threads) as chosen:
        if train is not None:
            click.echo(step_rate(chosen, train, *WAYS[way], quick, 3.0, begin)[0])
            return
        versions = bring(libraries)
        make, pixels, labels, about = material(images, ckpt, 8 if quick else n, chosen, quick)
        bench = Bench(make, pixels, labels, chosen, quick)
        there = describe_environment(chosen, threads)
        click.echo(
            f"{there['processor']}; {there['system']}; Python {there['python']}; torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN"
        )
        click.echo(f"{torch.backends.cudnn.version()}; robench {there['robench']} ({there['commit']}); {versions}")
        click.echo(
            f"{about}, {THREAT}, one chunk, seed 0; float32 exact, cuDNN deterministic"
            + "; tiny numbers, which measure nothing" * quick
        )
        for part, share in PARTS:
            bench.deadline = began + share * seconds
            try:
                part(bench)
            except Exception as error:  # one part that fails leaves the time to the others
                row(f"{part.__name__} failed: {type(error).__name__}: {str(error).splitlines()[:1]}")
                traceback.print_exc()
        click.echo(f"\n{time.perf_counter() - began:.0f} s in all, of {seconds:.0f}")


if __name__ == "__main__":
    main()
