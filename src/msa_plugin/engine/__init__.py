"""Engine: one backbone, one adapter, one bank, and the parts over them put together."""
