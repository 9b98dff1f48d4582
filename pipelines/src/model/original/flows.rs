//! Files of models of texts on rectified flows: Z-Image, Lumina Image 2.0, FLUX.2, Stable Diffusion 3.

use pyrograph_engine::diffusion::{
    GuidedChannels, NoiseSchedule, Prediction, Process, Sampler, Shifting, Spacing, TimeInput,
};
use pyrograph_engine::nets::DitConfig;
use pyrograph_weights::{Layout, convert};

use super::super::autoencoder::Latents;
use super::super::text::TextInput;
use super::super::{ModelConfig, Recognised, Source, flux2, lumina2, sd3, z_image};
use super::{Original, config};
use crate::error::Result;
use crate::settings::Defaults;

impl Original<'_> {
    /// Heads of published models are as many as there are blocks.
    pub(super) fn sd3(self) -> Result<Recognised> {
        let [hidden, channels, patch, _] = self.shape("x_embedder.proj.weight")?;
        let [_, table, _] = self.shape("pos_embed")?;
        let [_, text] = self.shape("context_embedder.weight")?;
        let [_, pooled] = self.shape("y_embedder.mlp.0.weight")?;
        let has = |name: &str| self.checkpoint.tensors().contains_key(name);
        let depth = self.blocks("joint_blocks.");
        let is_dual =
            |block: &usize| has(&format!("joint_blocks.{block}.x_block.attn2.qkv.weight"));
        let side = self.hints.input_size.unwrap_or(sd3::SIDE).min(table.isqrt() * patch);
        let net = sd3::Sizes {
            channels,
            side,
            patch,
            hidden,
            heads: self.hints.num_heads.unwrap_or(depth),
            depth,
            dual: (0..depth).take_while(is_dual).count(),
            head_norm: has("joint_blocks.0.x_block.attn.ln_q.weight").then_some(sd3::EPSILON),
            text,
            pooled,
            table: table.isqrt(),
        }
        .net();
        let schedule = NoiseSchedule::RectifiedFlow { shift: sd3::SHIFT };
        let process = Process::new(schedule, Prediction::Flow, TimeInput::Timestep);
        let (usual, layout) =
            ((sd3::STEPS, sd3::CFG_SCALE), convert::sd3_original(sd3::blocks(&net)));
        let mut found = self.flow(
            "original SD3 checkpoint",
            (net, layout),
            process,
            usual,
            (sd3::reads(), sd3::LATENTS),
        )?;
        // Its pipeline leaves the places of the steps to the scheduler.
        found.config.defaults.spacing = None;
        Ok(found)
    }

    /// The number of heads follows from the width of one, the axes of positions from that.
    pub(super) fn flux2(self) -> Result<Recognised> {
        let [hidden, channels] = self.shape("img_in.weight")?;
        let [head] = self.shape("single_blocks.0.norm.query_norm.scale")?;
        let [_, text] = self.shape("txt_in.weight")?;
        let [_, inner] = self.shape("double_blocks.0.img_mlp.2.weight")?;
        let axes = self.axes(head, vec![flux2::AXIS; flux2::AXES])?;
        let net = flux2::Sizes {
            channels,
            heads: hidden / head,
            head,
            blocks: [self.blocks("double_blocks."), self.blocks("single_blocks.")],
            text,
            mlp_ratio: inner as f64 / hidden.max(1) as f64,
            axes,
            theta: self.hints.rope_theta.unwrap_or(flux2::THETA),
            epsilon: flux2::EPSILON,
        }
        .net();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let is_base = name.contains("base");
        let process = Process {
            shifting: Some(Shifting::Flux2),
            ..Process::new(
                NoiseSchedule::RectifiedFlow { shift: 1.0 },
                Prediction::Flow,
                TimeInput::Timestep,
            )
        };
        let layout = convert::flux2_original(flux2::widths(&net));
        let usual = flux2::defaults(self.hints.is_distilled.unwrap_or(!is_base));
        self.flow(
            "original FLUX.2 checkpoint",
            (net, layout),
            process,
            usual,
            (flux2::reads(), flux2::LATENTS),
        )
    }

    /// The axes of positions of heads of this width: those of a `config.json`, or the usual ones.
    fn axes(&self, head: usize, usual: Vec<usize>) -> Result<Vec<usize>> {
        let axes = self.hints.axes_dims.clone().unwrap_or(usual);
        let sum = axes.iter().fold(0, |sum: usize, axis| sum.saturating_add(*axis));
        match head > 0 && sum == head {
            true => Ok(axes),
            false => Err(self.fault(format!(
                "heads of width {head}, axes of positions of {axes:?}: put a config.json with `axes_dims`, whose sum is \
                 {head}, beside it"
            ))),
        }
    }

    /// Sizes of Z-Image and of Lumina Image 2.0, and the width of a head, with which come the axes of its positions, which are
    /// in no file.
    fn sandwich(&self) -> Result<(z_image::Sizes, usize)> {
        let [hidden, values] = self.shape("x_embedder.weight")?;
        let [qkv, _] = self.shape("layers.0.attention.qkv.weight")?;
        let [inner, _] = self.shape("layers.0.feed_forward.w1.weight")?;
        let [head] = self.shape("layers.0.attention.q_norm.weight")?;
        let [text] = self.shape("cap_embedder.0.weight")?;
        let heads = hidden.checked_div(head).unwrap_or(0);
        let sizes = z_image::Sizes {
            channels: values / z_image::PATCH.pow(2),
            patch: z_image::PATCH,
            hidden,
            depth: self.blocks("layers."),
            refiners: self.blocks("noise_refiner."),
            heads: [heads, qkv.checked_div(head).unwrap_or(0).saturating_sub(heads) / 2],
            inner,
            text,
            epsilon: z_image::EPSILON,
        };
        Ok((sizes, head))
    }

    /// Lumina Image 2.0.
    pub(super) fn lumina2(self) -> Result<Recognised> {
        let (sizes, head) = self.sandwich()?;
        let axes = self.axes(head, lumina2::AXES.to_vec())?;
        let theta = self.hints.rope_theta.unwrap_or(lumina2::THETA);
        let side = self.hints.input_size.unwrap_or(lumina2::SIDE);
        let net = lumina2::net(&sizes, z_image::Axes { axes, theta }, side);
        let process = Process::new(
            NoiseSchedule::RectifiedFlow { shift: lumina2::SHIFT },
            Prediction::Backflow,
            TimeInput::Share,
        );
        let (usual, layout) = ((lumina2::STEPS, lumina2::CFG_SCALE), convert::lumina2_original());
        let kind = "original Lumina Image 2.0 checkpoint";
        let mut found =
            self.flow(kind, (net, layout), process, usual, (lumina2::reads(), z_image::LATENTS))?;
        found.config.defaults.cfg_normalized = lumina2::CFG_NORMALIZED;
        Ok(found)
    }

    /// Z-Image.
    pub(super) fn z_image(self) -> Result<Recognised> {
        let (sizes, head) = self.sandwich()?;
        let axes = self.axes(head, z_image::AXES.to_vec())?;
        let theta = self.hints.rope_theta.unwrap_or(z_image::THETA);
        let process = Process::new(
            NoiseSchedule::RectifiedFlow { shift: z_image::SHIFT },
            Prediction::Backflow,
            TimeInput::Countdown,
        );
        let net = sizes.net(z_image::Axes { axes, theta });
        let usual = (z_image::STEPS, z_image::CFG_SCALE);
        let layout = convert::z_image_original();
        self.flow(
            "original Z-Image checkpoint",
            (net, layout),
            process,
            usual,
            (z_image::reads(), z_image::LATENTS),
        )
    }

    /// A model of texts on a rectified flow.
    fn flow(
        self,
        kind: &str,
        (net, layout): (DitConfig, Layout),
        process: Process,
        (steps, cfg_scale): (usize, f64),
        (input, latents): (TextInput, Latents),
    ) -> Result<Recognised> {
        let defaults = Defaults {
            sampler: Sampler::Euler,
            spacing: Some(Spacing::Trailing),
            steps,
            cfg_scale,
            cfg_channels: GuidedChannels::All,
            cfg_interval: None,
            cfg_normalized: false,
        };
        Ok(Recognised {
            kind: kind.into(),
            config: ModelConfig { text: Some(input), process, ..config(net.into(), defaults) },
            net: Source::new(self.checkpoint, layout),
            vae: None,
            text: None,
            clips: Vec::new(),
            latents: Some(latents),
            notices: Vec::new(),
        })
    }
}
