"""The trainable roles: policy, PRM, supervised model."""
