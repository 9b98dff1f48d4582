//! Building blocks of the networks.

pub mod attention;
pub mod dense;
pub mod init;
pub mod lora;
pub mod magnitude;
pub mod mappers;
pub mod mlp;
pub mod modulation;
pub mod patch;
pub mod position;
pub mod resize;
pub mod rope;
pub mod time;

pub use attention::{Attend, Attention, AttentionConfig, CrossAttention, KvCache, joint_attention};
pub use dense::Dense;
pub use init::{Fresh, Init};
pub use lora::{Lora, LowRank};
pub use magnitude::{Magnitude, Residual};
pub use mlp::Mlp;
pub use modulation::{Modulated, Modulation, ModulationConfig};
pub use position::Position;
pub use rope::Rope;
pub use time::{TimeCode, TimeEmbedder};

pub use crate::ops::Activation;
