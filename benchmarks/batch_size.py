"""The largest batch that fits, as devicekit and its peers find it: is it right, and how many attempts does it take.

A step that runs out of memory above a known limit stands in for a model, so that the right answer is known. Nothing is
timed: on a real device an attempt takes seconds to minutes, so attempts are the price.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _table import Sheet, machine_line, save, show

LIMITS = (1, 2, 3, 5, 7, 8, 13, 16, 19, 20, 31, 33, 48, 63, 64, 65, 100, 127, 128, 200, 255, 333, 512, 777, 1000, 1023)
START, MOST = 64, 1024
Found = tuple[str, int]
"""What was answered, and after how many attempts."""


class Model:
    """Fits up to a limit, and remembers what was tried."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tried: list[int] = []

    def step(self, size: int) -> None:
        """One training step of this size."""
        import torch

        if size not in self.tried[-1:]:
            self.tried.append(size)
        if size > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def judged(self, answer: Any) -> Found:
        """The answer, and what is wrong with it."""
        wrong = ""
        if answer != self.limit:
            untried = isinstance(answer, int) and answer not in self.tried
            wrong = " (never tried)" if untried else " (does not fit)" if _above(answer, self.limit) else " (too small)"
        return f"{answer}{wrong}", len(self.tried)


def _above(answer: Any, limit: int) -> bool:
    return isinstance(answer, int) and answer > limit


def devicekit(model: Model) -> Any:
    """find_batch_size."""
    import devicekit as dk

    return dk.DeviceManager("cpu").find_batch_size(model.step, start=START, limit=MOST, progress=False)


def accelerate(model: Model, start: int = START) -> Any:
    """find_executable_batch_size, which only ever goes down from where it starts."""
    from accelerate.utils import find_executable_batch_size

    def run(size: int) -> int:
        model.step(size)
        return size

    return find_executable_batch_size(run, starting_batch_size=start)()


def accelerate_from_most(model: Model) -> Any:
    """From the largest size that is wanted."""
    return accelerate(model, MOST)


def lightning(model: Model, mode: str = "binsearch") -> Any:
    """Tuner.scale_batch_size, one step an attempt."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner

    class Tuned(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = START
            self.layer = torch.nn.Linear(1, 1)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.zeros(4 * MOST, 1), batch_size=self.batch_size)

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            model.step(len(batch))
            return self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with tempfile.TemporaryDirectory() as folder:  # it keeps a checkpoint beside the script
        trainer = Trainer(accelerator="cpu", max_steps=1, default_root_dir=folder, **quiet)
        return Tuner(trainer).scale_batch_size(Tuned(), mode=mode, steps_per_trial=1, init_val=START, max_trials=25)


def lightning_power(model: Model) -> Any:
    """Its default."""
    return lightning(model, "power")


CONTESTANTS: dict[str, Callable[[Model], Any]] = {
    "devicekit": devicekit,
    f"accelerate from {START}": accelerate,
    f"accelerate from {MOST}": accelerate_from_most,
    "Lightning, power": lightning_power,
    "Lightning, binsearch": lightning,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="tables for the README")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    found = {name: [_found(find, limit) for limit in LIMITS] for name, find in CONTESTANTS.items()}
    print(machine_line(), file=sys.stderr)
    show([_summary(found), _answers(found)], markdown=options.markdown)
    save(options.json, limits=LIMITS, found=found)
    return 0


def _found(find: Callable[[Model], Any], limit: int) -> Found:
    model = Model(limit)
    try:
        return model.judged(find(model))
    except ModuleNotFoundError as exc:
        return f"skipped: {exc}", 0
    except Exception as exc:  # how a peer fails is a result
        return f"{type(exc).__name__} (no answer)", len(model.tried)


def _summary(found: dict[str, list[Found]]) -> Sheet:
    sheet = Sheet("Batch size: answers that are right, and attempts", ("contestant", "right", "attempts", "mean"))
    for name, answers in found.items():
        right = sum(answer == str(limit) for limit, (answer, _) in zip(LIMITS, answers, strict=True))
        attempts = sum(count for _, count in answers)
        sheet.rows.append((name, f"{right} of {len(LIMITS)}", str(attempts), f"{attempts / len(LIMITS):.1f}"))
    return sheet


def _answers(found: dict[str, list[Found]]) -> Sheet:
    sheet = Sheet(f"Batch size: what was found (start {START}, at most {MOST})", ("fits", *found))
    for n, limit in enumerate(LIMITS):
        cells = (f"{answers[n][0]}; {answers[n][1]} attempts" for answers in found.values())
        sheet.rows.append((str(limit), *cells))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
