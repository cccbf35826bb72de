"""A network in training: its weights, its optimiser's state and its history; all that a resumed run goes on from."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from robustmix.checkpoints import load_state, save_state
from robustmix.data import Dataset
from robustmix.errors import CheckpointError
from robustmix.models import Classifier, ModelSpec, build
from robustmix.progress import say
from robustmix.rng import Stream, generator
from robustmix.spec.recipe import Recipe, load_recipe_fields
from robustmix.store.runs import STATE
from robustmix.team import Team


@dataclass
class Trainee:
    """A network in training.

    Attributes:
        model: the network itself, not compiled and not shared with other processes.
        optimiser: SGD, fused into one kernel.
        scaler: of the loss, for fp16; does nothing otherwise.
        history: a row per finished epoch.
        step: steps done of the epoch that has begun.
        totals: float32 [2], loss and right predictions (as mixed) of these steps, summed over examples.
    """

    model: Classifier
    optimiser: SGD
    scaler: torch.amp.GradScaler
    history: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    totals: Tensor = field(default_factory=lambda: torch.zeros(2))

    @property
    def done(self) -> tuple[int, int]:
        """Finished epochs, and steps of the next one."""
        return len(self.history), self.step

    def save(self, folder: Path, recipe: Recipe, digest: str) -> None:
        """Write everything that `resume` needs into one atomic file."""
        state = {
            "format": "robustmix-state-1",
            "recipe": recipe.model_dump(),
            "train_digest": digest,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "step": self.step,
            "totals": self.totals,
        }
        save_state(folder / STATE, state)

    def resume(self, folder: Path, recipe: Recipe, digest: str) -> None:
        """Go on from what `save` wrote; nothing happens where nothing was written.

        Raises:
            CheckpointError: it was written for another recipe or other data, or is damaged.
        """
        if not (folder / STATE).exists():
            return
        state = load_state(folder / STATE)
        if not fits(state, recipe, digest):
            raise CheckpointError(
                f"{folder / STATE} was trained by another recipe or on other data; start anew with --overwrite"
            )
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.history, self.step = state["history"], state.get("step", 0)
        self.totals = state.get("totals", self.totals)
        if len(self.history) < recipe.epochs:
            within = f" and {self.step} steps" if self.step else ""
            say(f"run {folder.name!r}: going on after epoch {len(self.history)}{within} of {recipe.epochs}")


def begin(recipe: Recipe, data: Dataset, team: Team) -> Trainee:
    """A network with fresh weights from the recipe's seed, the same in every process."""
    spec = ModelSpec(name=recipe.model, width=recipe.width, classes=data.classes, shape=data.shape)
    statistics = team.in_turn(data.train.channel_statistics)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(recipe.seed, Stream.INIT).integers(2**63)))
        model = build(spec, *statistics, recipe.dropped)
    model = model.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=True,
    )
    return Trainee(model, optimiser, torch.amp.GradScaler(team.device.type, enabled=recipe.precision == "fp16"))


def fits(state: dict[str, Any], recipe: Recipe, digest: str) -> bool:
    """Whether a state belongs to a recipe and its training examples."""
    # By way of a recipe: fields that an older robustmix did not know have their defaults.
    return bool(load_recipe_fields(state["recipe"]) == recipe and state["train_digest"] == digest)


def learning_rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """The learning rate of one step.

    Over the warm-up it rises linearly (Goyal et al. 2017). Then ``step`` divides it by 10 at every milestone (after 100
    and 150 of 200 epochs in Zhang et al. 2018), ``cosine`` takes it to 0 along half a cosine (Loshchilov and Hutter
    2017), and ``constant`` leaves it.

    Args:
        recipe: of the run.
        epoch: from 0.
        step: of the epoch, from 0.
        steps: of an epoch.
    """
    done, warm = epoch * steps + step, recipe.warmup * steps
    if done < warm:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * done / warm
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - warm) / (recipe.epochs * steps - warm)))
    if recipe.schedule == "constant":
        return recipe.lr
    return recipe.lr * 0.1 ** sum(epoch >= milestone for milestone in recipe.decay_epochs)
