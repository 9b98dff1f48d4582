//! What to type instead, where the library names a mistake that an option mends.

use pyrograph::engine::Error as EngineError;
use pyrograph::error::TextError;
use pyrograph::{Error, WeightType};

use crate::Command;

/// The option or command that helps with an error of `command`.
pub(crate) fn hint(error: &Error, command: &Command) -> Option<&'static str> {
    let takes_vae =
        matches!(command, Command::Generate { .. } | Command::Convert(_) | Command::Flexify(_));
    Some(match error {
        Error::UnsupportedDtype { .. } => "use --dtype f32",
        Error::Autoencoder { .. } if matches!(command, Command::Train { .. }) => {
            "name another with --set vae=MODEL"
        }
        Error::NoAutoencoder { .. } | Error::Autoencoder { .. } if !takes_vae => {
            "give the model one with `pyrograph convert --vae`"
        }
        Error::NoAutoencoder { .. } => "name one with --vae",
        Error::Autoencoder { .. } => "name another with --vae",
        Error::Unreadable { all: false, .. } => "leave them out with --skip-damaged",
        Error::NotFoundAgain { what, .. } => match *what {
            "the model" => "name it with --model",
            "the guide model" => "name it with --guide-model",
            "the autoencoder" => "name it with --vae",
            "the text encoder" => "name it with --text-encoder",
            "the start picture" => "give it again with --init-image",
            "the mask" => "give it again with --mask",
            _ => "give it again with --noise",
        },
        Error::Task { found: "texts", .. } if matches!(command, Command::Generate { .. }) => {
            "use `pyrograph generate text`"
        }
        Error::Task { found: "classes", .. } if matches!(command, Command::Generate { .. }) => {
            "use `pyrograph generate class`"
        }
        Error::Task { found: "classes", .. } if matches!(command, Command::Train(_)) => {
            "leave --init out, or name a model of texts"
        }
        Error::OtherTask { expected: "classes", .. } => "use `pyrograph generate text`",
        Error::OtherTask { .. } => "use `pyrograph generate class`",
        Error::Text(TextError::NoEncoder) => "name one with --text-encoder",
        Error::NoRoom { held: WeightType::Stored, .. } => "make smaller images, see -W and -H",
        Error::NoRoom { .. } if matches!(command, Command::Generate(_)) => {
            "use --dtype stored, which reads what does not fit from the model's file"
        }
        Error::TooMuch { .. } => match command {
            Command::Train(_) => "see --batch, and --set model.size=[H,W]",
            Command::Distill(_) => "see --batch and --batch-size",
            Command::Eval(_) => "see --batch-size and --size",
            Command::Bench(_) => "see --batch",
            Command::Generate(_) => {
                "make fewer or smaller images at once, see --batch-size, -W and -H"
            }
            _ => return None,
        },
        Error::OnePatchSize { .. } => "see `pyrograph flexify`",
        Error::NoTrajectories { .. } => "record with `pyrograph distill record`",
        Error::RunExists { .. } => "continue it with --resume, or choose another --output",
        Error::Gpu { .. } | Error::Engine(EngineError::SoftwareWithSpirv { .. }) => {
            "use --device cpu"
        }
        Error::Engine(EngineError::NoSuchAdapter { .. }) => "see `pyrograph devices`",
        _ => return None,
    })
}
