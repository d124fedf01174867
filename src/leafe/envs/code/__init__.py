"""Environments whose actions are whole programs: MBPP, HumanEval and CodeContests.

A program is run on tests in `leafe.envs.sandbox`, and the observation is a judge's verdict.
"""
