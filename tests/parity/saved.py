"""Models put together from sentence-transformers' own modules and saved by it, and what older releases named otherwise."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.model.quiet import quiet_transformers


def save_modules(folder: Path, modules: Sequence[Any], **settings: Any) -> Path:
    """Save a SentenceTransformer of these modules to `folder`; `settings` are its constructor's."""
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")  # what that library imports is not ours to judge
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(modules=list(modules), device="cpu", **settings)
        model.save(str(folder), create_model_card=False)
    return folder


def name_classes_as_before_5_4(folder: Path) -> Path:
    """The classes of modules.json in their old place."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def change(path: Path, *, drop: Sequence[str] = (), **keys: Any) -> None:
    """Set and drop keys of a JSON file, which is made where it is missing."""
    value = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({key: item for key, item in (value | keys).items() if key not in drop}))
