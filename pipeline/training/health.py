"""Temporary."""


class Health:
    def __init__(self, limit, device):
        self.exceeded, self.culprits = False, {}

    def note(self, name, finite):
        pass

    def close_iteration(self, nimg):
        pass

    def bad_now(self):
        return False

    def count(self, bad):
        pass


def report(path, nimg, rows):
    return path
