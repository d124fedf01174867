"""The rivals that need code of their own, built from the parts of explore and distill, under the
same budget and with the same trainer.

`ace` grows a playbook for the prompt, `early_experience` trains on what other actions than the
expert's lead to, `attempts` makes several attempts with
feedback and says what they cost, `grpo` is reinforcement learning. Those that need no code are
presets of Stage 2: rejection-sampling fine-tuning is `rft` on
the trees of independent sampling, the strongest simple rival is `rehearsal`.
"""
