"""The paper as pure functions on tensors. Nothing here knows models, settings, batches or devices."""
