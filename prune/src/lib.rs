//! Structured pruning of language models. Nothing yet: it comes with the pruning capability.
