"""Text from a model: a vLLM server that never outlives the run, TRL's client for it, and sampling for evaluations.

`server.vllm_server` starts and ends the run's own server, `client.connect` prepares TRL's generation, and
`sampling.generate` samples from a model in memory, on the CPU by the decoding loop in `rollouts`, as training does;
only what is streamed comes from transformers' own. `prompts.prompt_text` is what they continue.
"""
