//! The file formats: each reads names, types and places of tensors, and leaves the values where they are.

pub(crate) mod gguf;
pub(crate) mod pytorch;
pub(crate) mod safetensors;
pub(crate) mod shards;
