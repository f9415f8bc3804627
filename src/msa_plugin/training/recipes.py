"""Recipes: what is trained, on what, and for how long, as TOML files. Those that the package brings have names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from msa_plugin.config import Settings
from msa_plugin.errors import ConfigError
from msa_plugin.training.objectives import kind_of
from msa_plugin.training.settings import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = "recipes"


class RecipePhase(Settings):
    """Part of a schedule: what differs from the recipe's own `training` and `settings`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    training: Mapping[str, Any] = Field(default_factory=dict)
    settings: Mapping[str, Any] = Field(default_factory=dict)


class Recipe(Settings):
    """An objective with its `settings`, how it is trained (`training`, see `TrainConfig`), in one phase or several.

    `sets` are the data sets that are trained on (None: all there are). Phases go on from each other's parameters, each
    with an optimiser of its own. `about` is for people.
    """

    name: str
    objective: str
    about: str = ""
    sets: tuple[str, ...] | None = None
    seed: int = 0
    training: Mapping[str, Any] = Field(default_factory=dict)
    settings: Mapping[str, Any] = Field(default_factory=dict)
    phases: tuple[RecipePhase, ...] = ()

    def plan(self, steps: int | None = None) -> list[Planned]:
        """The phases with all their settings; `steps` replaces the steps of each. Raises ConfigError naming both."""
        kind = kind_of(self.objective)
        whole = self.phases or (RecipePhase(name="training"),)
        if len({p.name for p in whole}) < len(whole):
            raise ConfigError(f"recipe {self.name}: phases must have different names")
        found = []
        for phase in whole:
            training: dict[str, Any] = {"seed": self.seed, **self.training, **phase.training}
            if steps is not None:
                training |= {"steps": steps, "warmup": min(int(training.get("warmup", 0)), max(steps - 1, 0))}
            try:
                found.append(
                    Planned(phase.name, TrainConfig(**training), kind.settings(**{**self.settings, **phase.settings}))
                )
            except ConfigError as error:
                raise ConfigError(f"recipe {self.name}, phase {phase.name}: {error}") from error
        return found


@dataclass(frozen=True)
class Planned:
    """A phase, ready to be trained."""

    name: str
    training: TrainConfig
    settings: Settings


def recipe_names() -> list[str]:
    """Recipes that the package brings."""
    files = resources.files("msa_plugin").joinpath(_FOLDER).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_recipe(name: str, seed: int | None = None) -> Recipe:
    """A recipe of the package by name, or a TOML file by path; with `seed`, where it is given, instead of its own.

    Raises ConfigError for an unknown name, listing those there are, for a file that cannot be read, and for unknown
    or wrong settings.
    """
    if name in recipe_names():
        text, where = resources.files("msa_plugin").joinpath(_FOLDER, f"{name}.toml").read_text("utf-8"), name
    else:
        path = Path(name)
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise ConfigError(f"there is no recipe {name!r}; there are {known}, or give the path of a .toml file")
        try:
            text, where = path.read_text(encoding="utf-8"), path.name
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the recipe {where} is not TOML: {error}") from error
    try:
        recipe = Recipe(**{"name": where.removesuffix(".toml"), **raw, **({} if seed is None else {"seed": seed})})
    except ConfigError as error:
        raise ConfigError(f"the recipe {where}: {error}") from error
    recipe.plan()
    return recipe
