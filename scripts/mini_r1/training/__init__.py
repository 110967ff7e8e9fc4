"""From verdicts to weights: the trainer, its callbacks, the guards. Subclasses TRL, as generation's client does."""
