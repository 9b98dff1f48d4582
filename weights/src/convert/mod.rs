//! Tables for foreign layouts.

mod autoencoder;
mod dit;
mod efficientnet;
mod face;
mod flux2;
mod lora;
mod minit2i;
mod mp_dit;
mod pixart;
mod sd3;
mod text_encoder;
mod z_image;

pub use autoencoder::{autoencoder, autoencoder_tiny, is_autoencoder};
pub use dit::{dit_diffusers, dit_lora, dit_original, embedder_per_block};
pub use efficientnet::efficientnet_lite;
pub use face::{face_detector, face_reader, face_recogniser};
pub use flux2::{Flux2Widths, flux2_diffusers, flux2_lora, flux2_original};
pub use lora::{Lora, LoraTerm, PersonParts, read_lora, write_lora};
pub use minit2i::{minit2i, minit2i_lora};
pub use mp_dit::mp_dit;
pub use pixart::{pixart_diffusers, pixart_lora, pixart_original};
pub use sd3::{Sd3Blocks, sd3_diffusers, sd3_lora, sd3_original};
pub use text_encoder::{clip, gemma2, qwen3, t5};
pub use z_image::{
    lumina2_diffusers, lumina2_lora, lumina2_original, z_image_diffusers, z_image_lora,
    z_image_original,
};
