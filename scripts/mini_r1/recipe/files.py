"""Reading YAML files; duplicate keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A recipe file, or another of `key: value` lines, as a dict.

    Raises:
        RecipeError: when it is missing, is not YAML, is not a mapping, or repeats a key.
    """
    import yaml

    class UniqueKeyLoader(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [str(key) for key in keys if keys.count(key) > 1]
        if repeated:
            raise RecipeError(f"{path}: duplicate key {repeated[0]}")
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        recipe = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeyLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date such as 2025-13-01
        raise RecipeError(f"cannot read {path}: {error}") from error
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise RecipeError(f"{path} must hold `key: value` lines")
    return recipe
