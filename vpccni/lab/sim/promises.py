"""What is raised where a promise does not hold."""


class BrokenPromiseError(Exception):
    """A promise does not hold."""
