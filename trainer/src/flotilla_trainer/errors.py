"""The one error that a user of the trainer can cause."""


class TrainerError(Exception):
    """Wrong input; the message names the field, the value and the remedy."""
