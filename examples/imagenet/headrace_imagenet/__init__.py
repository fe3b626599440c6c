"""The ImageNet example: EfficientNet-Lite at several sizes and precisions, a ladder of one task."""
