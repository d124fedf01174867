"""The rivals that need code of their own (GRPO, Early Experience, ACE) get their rooms here, built from the parts of explore, distill and evaluate.

Those that need none are presets of Stage 2: rejection-sampling fine-tuning is `rft` on the trees of independent sampling, the strongest simple
rival is `rehearsal`.
"""
