//! `pyrograph inspect`.

use std::path::{Path, PathBuf};

use clap::Args;
use pyrograph::model::{self, Recognised};
use pyrograph::weights::{Bundle, Checkpoint};

use crate::common::Common;
use crate::print;

#[derive(Args)]
pub(crate) struct Inspect {
    /// Bundle, diffusers folder, checkpoint file, or the name of a shipped model
    path: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

pub(crate) fn run(args: &Inspect, common: &Common) -> anyhow::Result<()> {
    let path = common.find(&args.path)?;
    match model::recognise(&path) {
        Ok(model) => {
            show(&path, &model, args.tensors, common.json)?;
            // What was read is only part of a bundle.
            Ok(model.verify()?)
        }
        // A file of weights that is no model by itself is still worth a look.
        Err(error) => {
            if let Ok(checkpoint) = Checkpoint::open(&path) {
                if let Some(kind) = pyrograph::weights::recognise(&checkpoint) {
                    println!("recognised as {kind:?}");
                }
                list("weights", &checkpoint, args.tensors);
            }
            Err(error.into())
        }
    }
}

/// Tokens of a text of ordinary length.
const TEXT: usize = 20;

fn show(path: &Path, model: &Recognised, tensors: bool, json: bool) -> anyhow::Result<()> {
    let config = &model.config;
    let (net, parameters) = (&config.net.dit, config.net.parameters());
    if json {
        let line = serde_json::json!({
            "path": path, "kind": model.kind, "config": config,
            "parameters": parameters,
            "gmacs": net.patches().into_iter().map(|patch| {
                (patch.to_string(), net.flops(net.size, patch, TEXT) / 2e9)
            }).collect::<std::collections::BTreeMap<_, _>>(),
            "stored_elements": model.net.checkpoint.elements(),
        });
        println!("{line}");
        return Ok(());
    }
    println!("{}: {}", path.display(), model.kind);
    println!("transformer: {} parameters", thousands(parameters));
    let text = net.text.as_ref().map(|_| format!(" with a text of {TEXT} tokens"));
    for patch in net.patches() {
        let gmacs = net.flops(net.size, patch, TEXT) / 2e9;
        println!(
            "patch size {patch}: {gmacs:.3} GMAC per call{}",
            text.as_deref().unwrap_or_default()
        );
    }
    println!("{}", indent(&serde_json::to_string_pretty(&config.net)?));
    println!("process: {}", serde_json::to_string(&config.process)?);
    println!("defaults: {}", serde_json::to_string(&config.defaults)?);
    if !config.labels.0.is_empty() {
        println!("classes: {}", config.labels.0.join(", "));
    }
    list("transformer", &model.net.checkpoint, tensors);
    if let Some(vae) = &model.vae {
        list("autoencoder", &vae.checkpoint, tensors);
    }
    if let Some(text) = &model.text {
        list("text encoder", &text.encoder.source.checkpoint, tensors);
    }
    card(path)
}

fn list(title: &str, checkpoint: &Checkpoint, every: bool) {
    let tensors = checkpoint.tensors();
    println!("{title}: {} tensors, {} elements", tensors.len(), thousands(checkpoint.elements()));
    for (key, text) in checkpoint.metadata() {
        println!("  {} = {}", print::name(key), print::name(text));
    }
    if every {
        for (name, info) in tensors {
            println!("  {} {} {:?}", print::name(name), info.dtype, info.shape);
        }
    }
}

fn card(path: &Path) -> anyhow::Result<()> {
    if let Ok(bundle) = Bundle::open(path) {
        let manifest = bundle.manifest();
        for (key, text) in [("licence", &manifest.licence), ("source", &manifest.source)] {
            if let Some(text) = text {
                println!("{}: {}", print::name(key), print::name(text));
            }
        }
    }
    Ok(())
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
