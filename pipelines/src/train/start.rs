//! Where a run starts: fresh weights, or those of a model.

use burn::tensor::Device;
use pyrograph_engine::diffusion::{Level, Spacing};
use pyrograph_engine::layers::TimeCode;
use pyrograph_engine::nets::{Dit, Points, Student, Vae, distillable};
use pyrograph_engine::process::TimeInput;
use pyrograph_weights::FloatDtype;

use super::TrainConfig;
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::{Model, ModelConfig, recognise};
use crate::settings::Defaults;
use crate::trajectories::Trajectories;

/// One block of this many sees the history of a student: 6 of 28 in the paper.
const HISTORY_SHARE: usize = 5;

/// What a run starts from.
pub(super) struct Start {
    /// On an autodiff device, or to be brought to one.
    pub(super) net: Dit,
    /// Description of the finished model.
    pub(super) model: ModelConfig,
    /// Autoencoder of the finished model.
    pub(super) vae: Option<Vae>,
}

/// The start of a run on images; the autoencoder is left to the caller.
///
/// # Errors
/// A configuration that does not fit the data, or a model that cannot be opened or has another number of
/// classes, channels, or another size.
pub(super) fn images(
    config: &TrainConfig,
    classes: &[String],
    vae: Option<&Vae>,
    device: &Device,
) -> Result<Start> {
    let (channels, factor) =
        vae.map_or((3, 1), |vae| (vae.config().latent_channels, vae.config().factor()));
    let size = config.model.size.map(|side| side / factor);
    let vae = vae.map(|vae| vae.config().clone());
    let (net, model) = match &config.init {
        None => {
            let net = config.net(channels, size, classes.len())?;
            let model = ModelConfig {
                net: net.clone(),
                process: config.process.clone(),
                vae,
                defaults: config.defaults.clone(),
                labels: Labels(classes.to_vec()),
            };
            (net.init(config.seed, &device.clone().autodiff()), model)
        }
        Some(path) => {
            let model = recognise(path)?.load(FloatDtype::F32, device, &mut |_| ())?;
            let net = &model.config.net;
            let found = (net.channels, net.size, net.classes);
            let expected = (channels, size, classes.len());
            if found != expected {
                let text = |(channels, [height, width], classes): (usize, [usize; 2], usize)| {
                    format!("{channels} channels of {height}x{width} in {classes} classes")
                };
                return Err(Error::NotAModel {
                    path: path.clone(),
                    reason: format!("made for {}, the data is {}", text(found), text(expected)),
                });
            }
            (model.net, ModelConfig { vae, ..model.config })
        }
    };
    if matches!(model.net.time, TimeCode::Table { .. }) && model.process.time == TimeInput::LogSigma
    {
        let reason = "a table of times needs process.time = \"timestep\", it is \"log_sigma\"";
        return Err(Error::Config { reason: reason.into() });
    }
    config.check_patches(&model.net)?;
    let net = if model.net.adapter_rank().is_some() { net.freeze_native() } else { net };
    Ok(Start { net, model, vae: None })
}

/// The start of a student on its teacher's trajectories, and the recorded points that its steps predict.
///
/// # Errors
/// No teacher, another than the one of the trajectories, a student that does not fit either.
pub(super) fn student(
    config: &TrainConfig,
    set: &Trajectories,
    device: &Device,
) -> Result<(Start, Vec<usize>)> {
    let fault = |reason: String| Err(Error::Config { reason });
    let (Some(path), Some(shape)) = (&config.init, &config.student) else {
        return fault("trajectories need `init`, their teacher, and `student`".into());
    };
    let recognised = recognise(path)?;
    let (spec, found) = (set.spec(), recognised.net.checkpoint.fingerprint());
    if spec.teacher != found {
        return fault(format!(
            "the trajectories are those of a teacher with fingerprint {}, {} has {found}",
            spec.teacher,
            path.display()
        ));
    }
    let recorded = spec.after.len();
    if shape.steps == 0 || !recorded.is_multiple_of(shape.steps) {
        return fault(format!(
            "a student of {} steps on trajectories of {recorded} points, expected a divisor",
            shape.steps
        ));
    }
    let Model { net, vae, config: teacher } =
        recognised.load(FloatDtype::F32, device, &mut |_| ())?;
    let picks: Vec<usize> =
        (1..=shape.steps).map(|step| step * recorded / shape.steps - 1).collect();

    // Where the teacher stood when the input of each step was recorded.
    let grid = spec.grid(&teacher.process)?;
    let inputs = picks.iter().take(shape.steps - 1).map(|&pick| spec.after[pick]);
    let levels: Vec<Level> = std::iter::once(grid.steps[0][0])
        .chain(inputs.map(|taken| match spec.points {
            Points::Estimates => grid.steps[taken - 1][0],
            Points::States => grid.steps[taken - 1][1],
        }))
        .collect();
    let (times, spacing) = match teacher.process.time {
        TimeInput::Timestep => {
            let timesteps = Student::even_times(shape.steps, levels[0].timestep);
            (timesteps, Spacing::Timesteps(levels.iter().map(|level| level.timestep).collect()))
        }
        TimeInput::LogSigma => (
            levels.iter().map(|level| teacher.process.time_input(level)).collect(),
            Spacing::Sigmas(levels.iter().map(Level::ve_sigma).collect()),
        ),
    };
    let patches = match shape.patches.is_empty() {
        true => vec![teacher.net.patch; shape.steps],
        false => shape.patches.clone(),
    };
    let net = distillable(
        net,
        Student {
            times,
            patches,
            history: shape.history,
            history_layers: shape
                .history_layers
                .unwrap_or(teacher.net.depth.div_ceil(HISTORY_SHARE)),
            own_heads: shape.own_heads,
            points: spec.points,
        },
    );
    let net = net.map_err(|reason| Error::Config { reason })?;
    let model = ModelConfig {
        net: net.config().clone(),
        defaults: Defaults::student(shape.steps, spacing),
        ..teacher
    };
    Ok((Start { net, model, vae }, picks))
}
