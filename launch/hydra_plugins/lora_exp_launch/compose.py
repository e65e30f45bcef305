"""Composing many points that differ in a few values, without reading all files for each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict


class Composer:
    """What `ConfigLoader.load_sweep_config` composes, but for the node `hydra`.

    Hydra composes once for the points that choose the same files; what only sets a value
    (KEY=VALUE) is set in a copy of that. 3 ms a point instead of 45.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        """
        Args:
            loader: Hydra's.
            master: the config of the command.
        """
        self._loader = loader
        self._master = master
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}

    @cached_property
    def _parser(self) -> OverridesParser:
        return OverridesParser.create()

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a point.

        Raises:
            HydraException: as Hydra does.
            OmegaConfBaseException: for a value that its key cannot have, or a key there is not.
        """
        parsed = self._parser.parse_overrides(list(overrides))
        values = [override for override in parsed if not self._chooses_a_file(override)]
        if not all(_is_plain(override) for override in values):
            return self._composed_by_hydra(overrides)
        choices = tuple(str(o.input_line) for o in parsed if o not in values)
        if choices not in self._bases:
            self._bases[choices] = self._composed_by_hydra(choices)
        config = copy.deepcopy(self._bases[choices])
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        return config

    def _composed_by_hydra(self, overrides: Sequence[str]) -> DictConfig:
        config = self._loader.load_sweep_config(self._master, list(overrides))
        with open_dict(config):
            del config["hydra"]  # as Hydra does before it calls the program
        return config

    def _chooses_a_file(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key, results_filter=None))
        return self._groups[key] and not isinstance(override.value(), dict)


def _is_plain(override: Override) -> bool:
    """It is KEY=VALUE: it neither adds nor deletes a key."""
    return (
        override.type is OverrideType.CHANGE
        and override.package is None
        and not override.is_sweep_override()
        and not override.is_hydra_override()
    )
