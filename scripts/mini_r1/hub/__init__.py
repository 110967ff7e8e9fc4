"""The Hub: may this run write there, uploads beside the training, and resuming from a revision. See `README.md` here.

Every checkpoint becomes a branch `step-N` with everything in it. `main` holds the newest model, its card, the run's
description and the mark `newest_checkpoint.json`, which says whose run and which step the model is of. What a killed
run did not upload is uploaded by its next start, as far as the checkpoints are still in the run folder.
"""

from mini_r1.hub.repository import Target, asked_checkpoint, describe, fetch_checkpoint, make_repository, wants_hub
from mini_r1.hub.uploads import Uploads, is_uploading, upload_rest

__all__ = ["Target", "Uploads", "asked_checkpoint", "describe", "fetch_checkpoint", "is_uploading", "make_repository"]
__all__ += ["upload_rest", "wants_hub"]
