"""``aiseeme personal``: a run's backbone and one hospital's own last layer become that hospital's classifier."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.atomic_files import flush_folder, write_atomically
from aiseeme_models.downstream.classification import Classification, ClassificationOptions
from aiseeme_models.downstream.head_file import read_own_head
from aiseeme_models.errors import InputError
from aiseeme_models.training.shared_state import flatten, layout_of, load_flat
from server.global_model import save_head, save_weights
from server.model_manifest import CARD, MANIFEST_FILE, MODEL_FOLDER, ModelManifest, read_model_card
from server.model_reference import find_model
from server.run_folder import CONFIG
from server.signed_files import MODEL, write_signed

if TYPE_CHECKING:
    from server.coordinator_key import PinnedKey

_PREFACE = """# One hospital's own classifier

The backbone is that of the federated run {run} after its {last} rounds, the last layer that of one hospital after
round {round}: it was learnt from that hospital's patients alone, and joined to the backbone there. Nobody has
calibrated this classifier, and nobody but the hospital vouches for it. Research use only.

What follows is the card of the run.

"""


def join_own_head(
    reference: str, head_file: Path, out: Path, *, home: Path, key: PinnedKey | None = None
) -> ModelManifest:
    """Write the classifier of a backbone and one site's own head to a folder like a run's, which `predict` takes.

    The run's model is held against its signature; what is written has none, for the coordinator has never seen it.

    Args:
        reference: a run of personal heads: its id, its beginning, or its folder.
        head_file: what `aiseeme-site head` wrote at the hospital.
        out: the folder to write; it must not be there.
        home: the folder of all runs.
        key: the coordinator's, where it is known.

    Returns:
        What was written says of itself.

    Raises:
        InputError: no such model or file, a model that has no personal heads, a head of another run or of another
            number of classes, or ``out`` is there.
        OSError: it cannot be written.
    """
    if out.exists() or out.is_symlink() or out.name in ("", ".."):
        raise InputError(f"--out {out}: it is there already; name a folder that is not")
    own = read_own_head(head_file)
    model = find_model(reference, home, key)
    manifest, options = model.manifest, model.config.curriculum.stage[-1].options
    if not isinstance(options, ClassificationOptions) or options.head != "personal":
        raise InputError(f'{model.run}: its hospitals have no heads of their own: `head = "personal"` makes such a run')
    if manifest.own_head_round is not None:
        raise InputError(f"{reference}: a hospital's own classifier already; name the folder of the federation's run")
    if own.run != model.run:
        raise InputError(f"{head_file}: a head of run {own.run}, not of {model.run}")
    if manifest.round is not None and own.round > manifest.round:
        raise InputError(f"{head_file}: after round {own.round}, and the model is that of round {manifest.round}")
    task = Classification(model.backbone, options)
    layout = layout_of(task, model.config.model.norm)
    if len(own.values) != layout.size - layout.backbone_size:
        raise InputError(
            f"{head_file}: it does not fit the {len(options.names)} classes of {model.run} and its backbone"
        )
    vector = flatten(task, layout)
    vector[layout.backbone_size :] = own.values
    load_flat(task, layout, vector)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))  # its owner's alone
    try:
        (draft / MODEL_FOLDER).mkdir()
        shutil.copyfile(model.folder.parent / CONFIG, draft / CONFIG)
        weights, head = save_weights(draft / MODEL_FOLDER, task.backbone), save_head(draft / MODEL_FOLDER, task.head)
        joined = manifest.model_copy(
            update={
                "sha256": weights,
                "head_sha256": head,
                "classes": options.names,
                "own_head_round": own.round,
            }
        )
        preface = _PREFACE.format(run=model.run, last=manifest.round, round=own.round)
        write_atomically(draft / MODEL_FOLDER / CARD, (preface + read_model_card(model.folder)).encode())
        write_signed(draft / MODEL_FOLDER / MANIFEST_FILE, joined.to_bytes(), MODEL, None)
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    flush_folder(out.parent)
    return joined
