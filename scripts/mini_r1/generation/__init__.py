"""Text from a model: the vLLM server and its client for training, and sampling for evaluation."""
