//! Networks.

mod adapter;
mod control;
pub mod discriminator;
mod dit;
mod error;
pub mod face;
pub mod features;
mod ic_portrait;
mod in_context;
mod net;
mod student;
pub mod text_encoder;
pub mod vae;

pub use adapter::{Adaptable, Adapter, Tuned};
pub use control::{Control, Steered};
pub use discriminator::Discriminator;
pub(crate) use dit::Encoded;
pub use dit::{
    Affine, AfterBlock, BlockAdapters, BlockMode, Branches, Caption, Common, Condition,
    Conditioning, Context, Dit, DitBlock, DitConfig, Embedder, Ends, Fill, Flexible, Head, Mode,
    Norm, Norms, Panel, Placing, Refiners, Sharing, Text, TextAttention, TextConfig, TextEntry,
    TextLayers, flexify, refine,
};
pub use error::ConfigError;
pub use features::{
    EfficientNetLite0, FoldedEfficientNet, FoldedInception, INCEPTION_SIDE, Inception,
};
pub use ic_portrait::{Appearance, IcPortrait, IcPortraitConfig, Sight};
pub use in_context::InContext;
pub use net::{Net, NetConfig};
pub use student::{History, Memory, Points, STEP_LIMIT, Student, StudentConfig};
pub use text_encoder::{
    Places, Scores, TextBlock, TextEncoder, TextEncoderConfig, TextStates, TextStream,
};
pub use vae::{Vae, VaeConfig};
