"""Training samples and episodes of a run, written as files for other trainers."""
