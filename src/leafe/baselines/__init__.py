"""Rivals that need code of their own, built from the parts of explore and distill, under the same
budget and with the same trainer.

`ace` builds a playbook for the prompt, `early_experience` trains on what other actions than the
expert's lead to, `attempts` makes several attempts with feedback at a known price, `grpo` is
reinforcement learning. Rivals without code are presets of Stage 2: rejection-sampling fine-tuning
is `rft` on the trees of independent sampling, the strongest simple rival is `rehearsal`. The part
knows protocols, `explore`, `distill` and `prompts`, never an environment; `grpo` samples with the
`hf` engine.
"""
