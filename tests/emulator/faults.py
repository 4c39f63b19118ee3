"""What the emulator raises."""


class Fault(RuntimeError):
    """The code does what a GPU would punish or leave undefined, or what this emulator does not model."""
