//! Distillation of language models. Nothing yet: it comes with the distillation capability.
