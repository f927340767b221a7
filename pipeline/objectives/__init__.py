"""Formulas of losses and penalties: tensors in, one value a sample out. They know no network by class."""
