//! Human heads, drawn from a parametric model (MakeHuman/MPFB2, CC0), for tests and small training sets.
//!
//! A [`Head`] is the model, an [`Identity`] a person, a [`View`] an expression with a pose and a light. [`render`] draws a
//! [`Picture`], of which everything is known: colours without light, normals, distances, and the point of the surface that each pixel shows.
//! So the correspondence between two pictures is exact ([`flow()`]), and a portrait of one person after another's picture can be judged
//! ([`Judge`]), and so can what finds the same in two pictures ([`matched`]).

mod error;
mod flow;
mod head;
mod identity;
mod light;
mod metric;
mod paint;
mod picture;
mod portrait;
mod random;
mod raster;
mod shape;
mod view;
mod words;

pub use error::Error;
pub use flow::{Match, flow};
pub use head::{Head, Material};
pub use identity::{Identity, Traits};
pub use light::{angle, light_of};
pub use metric::report::{Protocol, Report, evaluated};
pub use metric::{Recogniser, similarity};
pub use picture::{MOST_PIXELS, Picture, Sample, render};
pub use portrait::cells::{Found, MOST_CELLS, Matched, Matcher, divides, matched};
pub use portrait::face::face_mask;
pub use portrait::judge::{Judge, Measure, Measured};
pub use portrait::matching::{Compared, Lead, Matching};
pub use portrait::pair::{MOST_PEOPLE, PHOTOS, Pair, Pairing, YAW};
pub use portrait::scores::{Gap, Group, Interval, Scores};
pub use random::Random;
pub use view::{EXPRESSIONS, Light, View};
pub use words::{Scene, caption, prompt};

/// The file of the head that comes with this crate.
pub const HEAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/head.safetensors");
