"""A model of a few thousand weights, for trainings of seconds."""

TINY_MODEL = {
    "preset": "ki_tiny",
    "changes": {
        "vision": {"width": 16, "depth": 1, "heads": 2, "mlp": 24, "image_size": 28, "patch_size": 14},
        "language": {
            "width": 24,
            "mlp": 32,
            "depth": 2,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "vocab_size": 1500,
        },
        "expert": {"width": 20, "mlp": 28},
    },
}
"""The `model` of a training configuration."""
