"""Checkpoints that are complete or not there, on disks that fill up, are read-only or slow.

Leans on transformers 5.17's `Trainer._save_checkpoint` and `rotate_checkpoints`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer

from mini_r1.common import UserError
from mini_r1.run_folder.folder import is_about_the_disk
from mini_r1.run_folder.manifest import THREAD, checkpoints_in, fault_in, write_manifest

logger = logging.getLogger(__name__)


class SavingTrainer(GRPOTrainer):
    """GRPOTrainer whose checkpoints count from their manifest on, and whose failed saves never end a training.

    Args:
        on_saved: called on the main process, in a thread, with every complete checkpoint's folder. Must not raise.
        write_card: writes the model card.
    """

    def __init__(
        self,
        *args: Any,
        on_saved: Callable[[Path], None] | None = None,
        write_card: Callable[[], None] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._on_saved, self._write_card = on_saved, write_card
        self._closing: threading.Thread | None = None

    def state_to_keep(self) -> dict[str, Any]:
        """What goes into the manifest of a checkpoint that is written now."""
        return {"step": self.state.global_step}

    def save_more(self, folder: Path) -> None:
        """Writes this process's part of a checkpoint that neither transformers nor TRL saves."""

    def _save_checkpoint(self, model: Any, trial: Any, state: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint, or says why it cannot, removes what was begun, and lets the training continue."""
        self.wait_for_checkpoint()
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        state = state or self.state_to_keep()
        problem = [self._room_for(folder) if self.accelerator.is_main_process else None]
        broadcast_object_list(problem)  # all ranks save, or none does: saving is a collective operation
        failure: str | None = problem[0]
        if failure is None:
            # An old checkpoint goes when the new one is whole, which transformers does not wait for.
            limit, self.args.save_total_limit = self.args.save_total_limit, None
            try:
                super()._save_checkpoint(model, trial)
                self.save_more(folder)
            except (OSError, SafetensorError, RuntimeError) as error:
                if not is_about_the_disk(error) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
                    raise  # with sharded weights the other ranks wait within the saving
                failure = str(error)
            finally:
                self.args.save_total_limit = limit
            failure = next((text for text in gather_object([failure]) if text), None)  # every rank wrote its part
        if self.accelerator.is_main_process:
            # Tens of GB take minutes to reach a slow disk; no rank waits for them.
            arguments = (folder, state, failure, self.state.best_model_checkpoint)
            self._closing = threading.Thread(target=self._close_checkpoint, args=arguments, name=THREAD)
            self._closing.start()

    def wait_for_checkpoint(self) -> None:
        """Waits until the last checkpoint is on the disk and complete, or undone."""
        if self._closing is not None:
            self._closing.join()

    def _close_checkpoint(self, folder: Path, state: dict[str, Any], failure: str | None, best: str | None) -> None:
        """Declares a checkpoint complete and removes the oldest, or undoes it; in a thread beside the training."""
        if failure is None:
            try:
                write_manifest(folder, state)
            except OSError as error:
                failure = str(error)
        if failure is not None:
            shutil.rmtree(folder, ignore_errors=True)
            complete = [step for step, path in checkpoints_in(folder.parent).items() if not fault_in(path)]
            logger.error(
                "step %d: no checkpoint could be written (%s); training continues, and %s; make room or change the "
                "permissions at %s, the next save tries again",
                state["step"],
                " ".join(failure.split()),
                f"checkpoint-{complete[-1]} stays the one to resume from" if complete else "there is none yet",
                folder.parent,
            )
            return
        try:
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit, best, True)
        except OSError as error:
            logger.warning("old checkpoints could not be removed (%s)", error)
        if self._on_saved is not None:
            self._on_saved(folder)

    def _room_for(self, folder: Path) -> str | None:
        """Why a checkpoint would not fit, judged by the size of the last one; None when nothing speaks against it."""
        with contextlib.suppress(OSError):  # then the save itself says what is wrong
            previous = [path for path in checkpoints_in(folder.parent).values() if path != folder]
            if not previous:
                return None
            size = sum(file.stat().st_size for file in previous[-1].rglob("*") if file.is_file())
            free = shutil.disk_usage(folder.parent).free
            return f"it takes some {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free" if size > free else None
        return None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the project's model card instead of TRL's, which TRL asks for with every checkpoint."""
        is_checkpoint = bool(args or kwargs)  # which needs a card only where it is uploaded
        if self._write_card is None or not self.accelerator.is_main_process or (is_checkpoint and not self._on_saved):
            return
        try:
            self._write_card()
        except (OSError, UserError) as error:
            logger.warning("the model card could not be written (%s)", error)
