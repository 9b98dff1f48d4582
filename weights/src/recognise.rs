//! Telling foreign checkpoints apart by the names they hold.

use crate::checkpoint::Checkpoint;

/// A kind of checkpoint that has a table in [`convert`](crate::convert).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// The original DiT.
    DitOriginal,
    /// The transformer of diffusers' `DiTPipeline`.
    DitDiffusers,
    /// MP-DiT.
    MpDit,
    /// The original PixArt-α or PixArt-Σ.
    PixArtOriginal,
    /// The original FLUX.2.
    Flux2Original,
    /// The original Stable Diffusion 3.
    Sd3Original,
    /// The original Z-Image.
    ZImageOriginal,
    /// The original Lumina Image 2.0.
    Lumina2Original,
    /// diffusers' `AutoencoderKL`, in its present or its former spelling.
    AutoencoderKl,
    /// The autoencoder of the original latent diffusion code.
    AutoencoderCompVis,
}

/// Two names that this kind holds together, and none that stands behind it.
pub(crate) const SIGNATURES: [(Foreign, [&str; 2]); 10] = [
    (Foreign::DitOriginal, ["x_embedder.proj.weight", "y_embedder.embedding_table.weight"]),
    (Foreign::DitDiffusers, ["pos_embed.proj.weight", "proj_out_2.weight"]),
    (Foreign::MpDit, ["x_embedder.weight", "y_embedder.embedding.weight"]),
    (Foreign::PixArtOriginal, ["t_block.1.weight", "y_embedder.y_proj.fc1.weight"]),
    (Foreign::Flux2Original, ["single_stream_modulation.lin.weight", "txt_in.weight"]),
    (Foreign::Sd3Original, ["joint_blocks.0.x_block.attn.qkv.weight", "context_embedder.weight"]),
    (Foreign::ZImageOriginal, ["x_pad_token", "noise_refiner.0.attention.qkv.weight"]),
    (Foreign::Lumina2Original, ["cap_embedder.0.weight", "noise_refiner.0.attention.qkv.weight"]),
    (Foreign::AutoencoderKl, ["encoder.conv_in.weight", "decoder.conv_norm_out.weight"]),
    (Foreign::AutoencoderCompVis, ["encoder.conv_in.weight", "decoder.norm_out.weight"]),
];

/// What a checkpoint holds, if it is of a known kind.
pub fn recognise(checkpoint: &Checkpoint) -> Option<Foreign> {
    kind(|name| checkpoint.tensors().contains_key(name))
}

/// What tensors are, by the names that are among theirs.
pub(crate) fn kind(holds: impl Fn(&str) -> bool) -> Option<Foreign> {
    let found = SIGNATURES.iter().find(|(_, names)| names.iter().all(|name| holds(name)));
    found.map(|(kind, _)| *kind)
}
