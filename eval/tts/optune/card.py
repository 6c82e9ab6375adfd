"""An editor's folder: `editor.json` (of which model and matrices, with which feedback) and `editor.safetensors`.

Reading the card and the shapes of its tensors takes neither torch nor the model, so that what does not fit is told first.
Nothing else is read: a pickled checkpoint may run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError
from reasonrl.eval.tts.optune.targets import Matrix
from reasonrl.runs.files import replacing, write_text

if TYPE_CHECKING:
    from reasonrl.eval.tts.feedback import FeedbackPolicy
    from reasonrl.eval.tts.optune.editor import Editors

CARD, WEIGHTS = "editor.json", "editor.safetensors"
SCHEMA = 1
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
WAY_OUT = "train one with `reasonrl optune train`"


@dataclass(frozen=True)
class Card:
    """What an editor was made of.

    model: its fingerprint. rank, dropout: of g. words: what every attempt was answered with; feedback: hash of these words in
    the model's chat markup, as tokens. training: settings, counts and losses.
    """

    model: str
    matrices: tuple[Matrix, ...]
    targets: tuple[str, ...]
    layers: tuple[int, ...]
    rank: int
    dropout: float
    words: str
    feedback: str
    training: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what `editor.safetensors` must hold."""
        found: dict[str, tuple[int, ...]] = {"eta": (len(self.matrices),)}
        for matrix in self.matrices:
            width, name = matrix.inputs + matrix.outputs, f"editors.{matrix.shape}."
            found |= {f"{name}down": (self.rank, width), f"{name}up": (width, self.rank), f"{name}bias": (width,)}
            found |= {f"{name}count": (), f"{name}mean": (width,), f"{name}m2": (width,)}
        return found


def rendering(feedback: FeedbackPolicy, words: str) -> str:
    """Hash of the turn that answers an attempt: it differs when words, template or vocabulary do."""
    return hashlib.sha256(json.dumps(feedback.turn(words, header=False)).encode()).hexdigest()


def write_editor(folder: Path, card: Card, editors: Editors) -> None:
    """Weights and card into a folder that exists; the card last."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in editors.state_dict().items()}
    with replacing(folder / WEIGHTS) as scratch:
        scratch.write_bytes(save(tensors))  # `save_file` has an error of its own for a full disk
    write_text(folder / CARD, json.dumps(asdict(card), indent=1, ensure_ascii=False) + "\n")


def read_card(given: str | Path) -> Card:
    """The card of the folder, its tensors' names and shapes checked. Raises ConfigError."""
    folder = Path(given).expanduser()
    if not folder.exists():
        raise ConfigError(f"no editor {folder}: {WAY_OUT}, or correct method.editor=")
    _refuse_pickled(folder)
    if not (folder / CARD).is_file():
        raise ConfigError(f"{folder} has no {CARD}: it is not the folder of an editor; {WAY_OUT}")
    try:
        values = json.loads((folder / CARD).read_text())
        if values["schema"] != SCHEMA:
            raise ConfigError(
                f"{folder / CARD} has schema {values['schema']}, this reasonrl reads {SCHEMA}: train the editor again"
            )
        matrices = tuple(Matrix(**each) for each in values.pop("matrices"))
        card = Card(matrices=matrices, **{name: _tuples(value) for name, value in values.items()})
        wanted = card.tensors
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{folder / CARD} is not the card of an editor ({error}); {WAY_OUT}") from error
    _check_tensors(folder / WEIGHTS, wanted)
    return card


def read_editors(given: str | Path, card: Card, device: Any = "cpu") -> Editors:
    """The editors of a folder, for use: frozen. Raises ConfigError for numbers that no training left."""
    from safetensors.torch import load_file

    from reasonrl.eval.tts.optune.editor import Editors

    file = Path(given).expanduser() / WEIGHTS
    editors = Editors(card.matrices, rank=card.rank, dropout=card.dropout)
    state = load_file(file)
    editors.load_state_dict(state)
    broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise ConfigError(f"{file}: {broken[0]} is not finite; {WAY_OUT}")
    empty = [name for name, value in state.items() if name.endswith("count") and int(value) < 2]
    if empty:
        raise ConfigError(f"{file}: {empty[0]} has seen no tokens, so nothing can be normalised; {WAY_OUT}")
    return editors.to(device).eval().requires_grad_(False)


def sha256(given: str | Path) -> str:
    """Which editor it is."""
    digest = hashlib.sha256()
    for name in (CARD, WEIGHTS):
        digest.update((Path(given).expanduser() / name).read_bytes())
    return digest.hexdigest()


def _check_tensors(file: Path, wanted: Mapping[str, tuple[int, ...]]) -> None:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ConfigError(f"{file.parent} has no {file.name}: copy it again, or {WAY_OUT}")
    try:
        with safe_open(file, framework="numpy") as content:
            have = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} is no safetensors file, or one cut short ({error}): copy it again") from error
    for name in sorted({*have, *wanted}):
        if have.get(name) != wanted.get(name):
            raise ConfigError(
                f"{file}: {name} has shape {have.get(name, 'none, it is missing')}, and {CARD} says "
                f"{wanted.get(name, 'that there is none')}: the two files do not belong together; {WAY_OUT}"
            )


def _refuse_pickled(path: Path) -> None:
    """Of the released code and others: a file with pickled objects."""
    files: Sequence[Path] = [path] if path.is_file() else sorted(path.iterdir())
    pickled = [each for each in files if each.suffix in PICKLED]
    if pickled and (path.is_file() or not (path / CARD).is_file()):
        raise ConfigError(
            f"{pickled[0]} is a pickled checkpoint, which may run code when it is loaded, and is refused: an editor is a "
            f"folder with {CARD} and {WEIGHTS}; {WAY_OUT}"
        )
    if path.is_file():
        raise ConfigError(f"{path} is a file: an editor is a folder with {CARD} and {WEIGHTS}; {WAY_OUT}")


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
