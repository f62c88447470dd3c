"""A run in the formats of others."""

from __future__ import annotations

from pathlib import Path

from robench.data import load_dataset
from robench.data.recorded import as_recorded
from robench.evaluation.run_folder import read_run
from robench.files import write_atomically
from robench.interchange import robustbench
from robench.interchange.adv import write_adv
from robench.interchange.model_card import model_card
from robench.models.multihead import MAIN_HEAD
from robench.models.subject import of_head


def export_run(
    run: Path,
    form: str,
    *,
    attack: str = "union",
    dataset: str | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
) -> Path:
    """Writes a run as others read it, and returns where.

    Args:
        run: a folder of ``robench attack``.
        form: "robustbench", "model-card" or "adv".
        attack: of "adv", whose images.
        dataset, data_dir: of "adv", the run's data, where they no longer lie where they were.
        out: the file, below ``RUN/export`` by default.

    Raises:
        RobenchError: it is no run folder, or images were not kept.
    """
    described = read_run(run)
    if form == "adv":
        origin = described["model"]["origin"]
        data = load_dataset(as_recorded(described["data"], dataset), "test", data_dir)
        data = of_head(data, origin.get("head", MAIN_HEAD)) if "checkpoint" in origin else data
        path = out or run / "export" / f"{described['model']['name']}-{attack.replace('/', '-')}.pt"
        write_adv(run, attack, data, path)
        return path
    name, text = robustbench.render(run) if form == "robustbench" else ("model-card.md", model_card(run))
    path = out or run / "export" / name
    write_atomically(path, text.encode())
    return path
