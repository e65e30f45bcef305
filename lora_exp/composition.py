"""What config files may ask of Hydra: values, and never code.

Hydra makes objects of whatever a config names as `_target_`, a callback, or a log's handler. Files
travel: an experiment comes with a paper, a folder with a colleague. So what Hydra itself is told
comes from the command line and from `conf/config.yaml` and `conf/hydra`, and from files of others
only a sweep and how the cluster is asked. And a few lines of YAML can be made to mean millions of
values: such a file is refused as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal import hydra as internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from lora_exp.errors import UserError, nearest
from lora_exp.runs.values import TooLarge, check_size

HARMLESS = ("mode", "sweeper")
"""What any file may say to Hydra: that it is a grid, and of what."""
PLUGINS = ("launcher", "sweeper")
"""Where Hydra is told a class, one of its plugins that are installed."""


def guard() -> None:
    """Let Hydra load configs so in this process."""
    Plugins.instance()  # registers Hydra's own source of files
    SourcesRegistry.instance().types[GuardedSource.scheme()] = GuardedSource
    internal.ConfigLoaderImpl = GuardedLoader  # pyright: ignore[reportPrivateImportUsage]


class GuardedSource(FileConfigSource):
    """Refuses a file in which a few lines mean millions of values, before it reads them."""

    def load_config(self, config_path: str) -> ConfigResult:
        """
        Raises:
            UserError: for such a file.
        """
        file = Path(self.path, self._normalize_file_name(config_path))
        try:
            check_size(file.read_text(encoding="utf-8"))
        except TooLarge as error:
            raise UserError(f"{file}: {error}.") from error
        except (YAMLError, OSError, UnicodeDecodeError):
            pass  # told when Hydra reads it
        return super().load_config(config_path)


class GuardedLoader(ConfigLoaderImpl):
    """Refuses, before Hydra acts on it, what would run code that a config names."""

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *arguments: Any, **options: Any
    ) -> DictConfig:
        """
        Raises:
            UserError: for a config that names code.
        """
        self._check_choices(overrides)
        try:
            config = super().load_configuration(config_name, overrides, *arguments, **options)
        except (UnicodeDecodeError, OSError) as error:
            if isinstance(error, HydraException):
                raise
            raise UserError(f"{self._culprit(error)}: no config ({error}).") from error
        except RecursionError as error:
            raise UserError(
                "The defaults of config files choose each other in a circle."
            ) from error
        _check(OmegaConf.to_container(config.hydra))
        return config

    def _culprit(self, error: Exception) -> str:
        """The file that cannot be loaded: Hydra does not say."""
        for source in self.get_sources():
            if source.scheme() == "file":
                for file in sorted(Path(source.path).rglob("*.yaml")):
                    try:
                        OmegaConf.load(file)
                    except type(error) as one:
                        if str(one) == str(error):
                            return str(file)
                    except Exception:  # of a file that nobody has chosen
                        continue
        return "A config file"

    def _check_choices(self, overrides: list[str]) -> None:
        """See that where a file is to be chosen, the name of one is given."""
        for override in OverridesParser.create(config_loader=self).parse_overrides(overrides):
            group, value = override.key_or_group, override.value()
            if not group:
                raise UserError(f"{override.input_line}: names no key; expected KEY=VALUE.")
            if override.is_sweep_override() or not self.repository.group_exists(group):
                continue
            if (
                override.type is OverrideType.DEL
                or value == ""
                or not isinstance(value, str | dict)
                or "\0" in str(value)  # no name of a file
            ):
                options = self.get_group_options(group)
                hint = nearest(str(value), options, kind="choices") if options else ""
                raise UserError(f"{override.input_line}: give the name of one choice. {hint}")

    def _load_single_config(self, default: ResultDefault, repo: Any) -> ConfigResult:
        loaded = super()._load_single_config(default, repo)
        if not _is_of_hydra(loaded, str(default.config_path)):
            _check_file(loaded, default)
        return loaded


def _is_of_hydra(loaded: ConfigResult, name: str) -> bool:
    """The file is Hydra's own, a plugin's, or one of ours that speaks to Hydra."""
    if not loaded.path.startswith("file://"):
        return True
    whole = name.removesuffix(".yaml") == "config" or name.startswith("hydra/")
    return whole and loaded.provider == "main"  # the folder of config.yaml


def _check_file(loaded: ConfigResult, default: ResultDefault) -> None:
    """See that a file holds values; a launcher is another thing, and chosen on the command line."""
    name = str(default.config_path).removesuffix(".yaml")
    if name.startswith("hydra/launcher/"):
        return
    said = set[str]()
    if (default.package or "").split(".")[0] == "hydra":
        said.add(str(default.package))
    node = loaded.config.get("hydra") if isinstance(loaded.config, DictConfig) else None
    if isinstance(node, DictConfig):
        said |= {f"hydra.{key}" for key in node if key not in HARMLESS}
        sweeper = node.get("sweeper")
        if isinstance(sweeper, DictConfig):
            said |= {f"hydra.sweeper.{key}" for key in sweeper if key != "params"}
    for chosen in loaded.defaults_list or ():
        group = str(chosen.group).lstrip("/") if isinstance(chosen, GroupDefault) else ""
        if group.startswith("hydra/"):
            said.add(group)
    if said:
        raise UserError(
            f"In {loaded.path.removeprefix('file://')}/{name}.yaml: {', '.join(sorted(said))}: a "
            "config file may not tell Hydra more than hydra.mode and hydra.sweeper.params. Give "
            "what you want of it on the command line."
        )


def _check(hydra: Any) -> None:
    """See what Hydra would make objects of."""
    if hydra.get("callbacks"):
        raise UserError("hydra.callbacks: code that a config names is not run; leave it out.")
    for kind in ("job_logging", "hydra_logging"):
        if (hydra.get(kind) or {}).get("root") is not None:
            raise UserError(f"hydra/{kind}: a run writes its own log.txt; leave it out.")
    if hydra["job"].get("env_set"):
        raise UserError("hydra.job.env_set: set variables of the environment in your shell.")
    known = Plugins.instance().class_name_to_class
    for place, target in _targets(hydra, "hydra"):
        if place.removeprefix("hydra.") not in PLUGINS or target not in known:
            options = [name for name in known if name.endswith(("Launcher", "Sweeper"))]
            raise UserError(
                f"{place}._target_={target}: no plugin of Hydra's that is installed. "
                f"{nearest(str(target), options, kind='plugins')}"
            )


def _targets(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Each `_target_`, with the key of the mapping that it stands in."""
    inside = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in inside:
        if key == "_target_":
            yield place, value
        elif isinstance(value, dict | list):
            yield from _targets(value, f"{place}.{key}")
