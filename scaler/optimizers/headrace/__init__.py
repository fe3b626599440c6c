"""`headrace`, the default optimizer: pipelines, unlike workers, floors, switching cost and uncertainty in one linear program and its rounding."""

from scaler.optimizers.headrace.optimizer import HeadraceOptimizer

__all__ = ["HeadraceOptimizer"]
