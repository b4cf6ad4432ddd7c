"""What the checks of all formats share: a list of findings, and the checks of betas, trials and stimuli."""
