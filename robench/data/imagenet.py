"""ImageNet's validation pictures from a copy that the user has, in whichever of the usual ways it lies there."""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from robench.data.folder import Labelled, balanced_order, dataset_of_files, list_pictures
from robench.data.imagenet_classes import names, synsets
from robench.data.preprocessing import Preprocessing
from robench.data.reading import Reading
from robench.types import Dataset, RobenchError

EPS = {"Linf": "4/255", "L2": "3.0"}  # RobustBench's, and the AutoAttack paper's
USUAL = Preprocessing(resize=256, crop=(224, 224), origin="ImageNet's usual evaluation")
SUBSET = "robustbench"
OFFICIAL = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
SOLUTION, TRUTH, META = "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
N_CLASSES = 1000


def load_imagenet(split: str, data_dir: Path, reading: Reading) -> Dataset:
    """The validation pictures below ``data_dir/imagenet`` (or ``ILSVRC2012``, or ``data_dir`` itself), as the test split.

    ``val/`` has a folder per synset; or the official flat files, with ``LOC_val_solution.csv`` or the devkit's ground truth beside them.
    Classes are in torchvision's order. Pictures are read as torchvision and timm read them: EXIF tags are not looked at.

    Raises:
        RobenchError: there is no such copy, it is not whole, or the train split is asked for.
    """
    if split != "test":
        raise RobenchError("`dataset=imagenet` has its validation pictures only, as the test split; to train, name a folder")
    base = _base(data_dir)
    found = _by_synset(base) or _flat(base)
    if found is None:
        raise RobenchError(
            f"{base} has neither folders named by synsets (n01440764, ...) nor ILSVRC2012_val_*.JPEG with {SOLUTION} or the devkit's {TRUTH} "
            "and meta.mat beside them"
        )
    chosen = _subset(found, reading.subset)
    order = balanced_order([each.label for each in chosen], mixed=True) if reading.subset is None else range(len(chosen))
    files, labels = [chosen[place].file for place in order], [chosen[place].label for place in order]
    name = "imagenet" if reading.subset is None else f"imagenet-{reading.subset}"
    data = dataset_of_files(
        name, split, base, files, labels, classes=_shown(), reading=reading, upright=False, default=USUAL, default_eps=EPS
    )
    named = {"dataset": "imagenet"} | ({} if reading.subset is None else {"subset": reading.subset})
    return replace(data, reading={**named, **data.reading})


def has_imagenet(data_dir: Path) -> Path | None:
    """The folder that has the pictures, or the synsets, below ``data_dir``; None where there is none."""
    for root in _roots(data_dir):
        for base in (root / "val", root / "validation", root / "ILSVRC" / "Data" / "CLS-LOC" / "val", root):
            if base.is_dir() and any(each.name in _known() or OFFICIAL.fullmatch(each.name) for each in base.iterdir()):
                return base
    return None


def _roots(data_dir: Path) -> list[Path]:
    return [data_dir / "imagenet", data_dir / "ILSVRC2012", data_dir]


def _base(data_dir: Path) -> Path:
    base = has_imagenet(data_dir)
    if base is not None:
        return base
    raise RobenchError(
        f"no ImageNet in {data_dir}: expected {_roots(data_dir)[0] / 'val'} with folders n01440764 to n15075141, or ILSVRC2012_val_00000001.JPEG and so "
        f"on with {SOLUTION}. It cannot be downloaded without an account: get ILSVRC2012_img_val.tar from image-net.org or Kaggle, and "
        "point `data_dir` or $ROBENCH_DATA at the folder that has imagenet/"
    )


@functools.cache
def _known() -> dict[str, int]:
    return {synset: label for label, synset in enumerate(synsets())}


def _shown() -> tuple[str, ...]:
    """Class names: synset and English, so that no two are equal and both can be searched for."""
    return tuple(f"{synset} {name}" for synset, name in zip(synsets(), names(), strict=True))


def _by_synset(base: Path) -> list[Labelled] | None:
    known = _known()
    there = sorted(entry.name for entry in base.iterdir() if entry.is_dir() and entry.name in known)
    if not there:
        return None
    missing = sorted(known.keys() - set(there))
    if missing:
        raise RobenchError(
            f"{base} has {len(there)} of ImageNet's 1,000 classes, {missing[0]} is missing: copy it again; to evaluate on these classes alone, name the "
            f"folder, `dataset={base}`, and let `classes=imagenet` pick the model's outputs"
        )
    return [Labelled(file, known[synset]) for synset in there for file in list_pictures(base, synset)]


def _flat(base: Path) -> list[Labelled] | None:
    files = [file for file in list_pictures(base, "") if OFFICIAL.fullmatch(file.name)]
    if not files:
        return None
    labels = _of_solution(base) or _of_devkit(base)
    if labels is None:
        return None
    unknown = [file.name for file in files if _number(file.name) not in labels]
    if unknown:
        raise RobenchError(
            f"{base}: no label for {unknown[0]} and {len(unknown) - 1} more; is the file of labels that of these pictures?"
        )
    return [Labelled(file, labels[_number(file.name)]) for file in files]


def _number(name: str) -> int:
    match = OFFICIAL.match(name)
    return int(match[1]) if match else -1


def _beside(base: Path, name: str) -> Path | None:
    """A file in the folder of the pictures, or above it, or in a devkit there."""
    places = [base, *list(base.parents)[:4]]
    tried = [
        place / sub / name for place in places for sub in (".", "ILSVRC2012_devkit_t12/data", "devkit/data", "data", "ILSVRC2012")
    ]
    return next((path for path in tried if path.is_file()), None)


def _of_solution(base: Path) -> dict[int, int] | None:
    """Labels by the number of the picture, of Kaggle's file: ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``."""
    path = _beside(base, SOLUTION)
    if path is None:
        return None
    known, labels = _known(), {}
    with open(path, newline="") as file:
        for line, row in enumerate(csv.reader(file)):
            match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", row[0]) if len(row) == 2 else None
            synset = row[1].split(" ")[0] if match else ""
            if match and synset in known:
                labels[int(match[1])] = known[synset]
            elif line:
                raise RobenchError(
                    f"{path}, line {line + 1}: expected ILSVRC2012_val_00000001,n01751748 ..., got {','.join(row)[:60]!r}"
                )
    return labels


def _of_devkit(base: Path) -> dict[int, int] | None:
    """Labels by the number of the picture, of the devkit's ground truth, whose classes meta.mat names."""
    truth, meta = _beside(base, TRUTH), _beside(base, META)
    if truth is None:
        return None
    if meta is None:
        raise RobenchError(f"{truth} numbers the classes in the devkit's own order, which {META} beside it names; copy that too")
    known, synset_of = _known(), _devkit_synsets(meta)
    try:
        numbers = [int(line) for line in truth.read_text().split()]
        return {place + 1: known[synset_of[number]] for place, number in enumerate(numbers)}
    except (ValueError, KeyError) as error:
        raise RobenchError(f"{truth} does not hold one number of 1 to 1,000 a line, or {meta} does not name it ({error})") from None


def _devkit_synsets(meta: Path) -> dict[int, str]:
    """ILSVRC2012_ID to synset."""
    from scipy.io import loadmat

    try:
        rows: Any = loadmat(str(meta), squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["ILSVRC2012_ID"]) <= N_CLASSES}
    except (ValueError, KeyError, TypeError, OSError, NotImplementedError) as error:
        raise RobenchError(f"{meta} is no meta.mat of ImageNet's devkit: {error}") from None


def _subset(found: list[Labelled], subset: str | None) -> list[Labelled]:
    """All pictures, or RobustBench's 5,000 in the order of its list, which is read from its installed package.

    Raises:
        RobenchError: there is no such subset, the package is not installed, or pictures are missing.
    """
    if subset is None:
        return found
    if subset != SUBSET:
        raise RobenchError(f"`subset={subset}`: expected {SUBSET}, its 5,000 pictures")
    by_number = {_number(Path(each.file.name).name): each for each in found}
    listed = _robustbench_list()
    missing = [name for name in listed if _number(name) not in by_number]
    if missing:
        raise RobenchError(
            f"`subset={subset}`: {len(missing)} of its {len(listed)} pictures are missing, the first is {missing[0]}"
        )
    return [by_number[_number(name)] for name in listed]


def _robustbench_list() -> list[str]:
    try:
        file = metadata.distribution("robustbench").locate_file("robustbench/helper_files/imagenet_test_image_ids.txt")
        lines = Path(str(file)).read_text().split()
    except (metadata.PackageNotFoundError, OSError):
        raise RobenchError(
            f"`subset={SUBSET}` is read from RobustBench's package, which is not installed: pip install 'robench[robustbench]'"
        ) from None
    return [line.rpartition("/")[2] for line in lines]
