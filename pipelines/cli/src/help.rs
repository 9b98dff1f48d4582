//! What the program tells of itself: options under headings, examples, completions and manual pages.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;

/// Options of a heading.
type Heading = (&'static str, &'static [&'static str]);

/// Headings of the options of every command; those that are not listed keep the plain one.
const COMMON: &[Heading] = &[("Every command", &["device", "threads", "json", "quiet", "verbose"])];

const PATCHES: Heading = (
    "Patch sizes",
    &["compute", "weak_steps", "weak_steps_guidance", "weak_patch", "patch_schedule"],
);
const TRAINING: Heading =
    ("Training", &["config", "set", "steps", "batch", "lr", "seed", "skip_damaged", "resume"]);
const STUDENT: Heading = (
    "Student",
    &[
        "student_steps",
        "student_patches",
        "history",
        "history_layers",
        "shared_head",
        "init",
        "adversarial",
    ],
);
const TRAJECTORIES: Heading = (
    "Trajectories",
    &[
        "count",
        "teacher_steps",
        "points",
        "at",
        "states",
        "prompt_file",
        "cfg_scale",
        "sampler",
        "first_seed",
        "batch_size",
        "shard",
    ],
);
const JUDGING: Heading =
    ("Judging", &["reference", "resamples", "features", "cache", "skip_damaged", "size", "pairs"]);
const MAKING: Heading = (
    "Making images",
    &["model", "count", "steps", "cfg_scale", "sampler", "seed", "dtype", "batch_size"],
);

const GENERATE: &[Heading] = &[
    (
        "Model",
        &["model", "fast", "vae", "text_encoder", "tokenizer", "lora", "dtype", "max_memory"],
    ),
    (
        "Pictures",
        &[
            "class",
            "prompt_file",
            "negative_prompt",
            "raw_prompt",
            "max_tokens",
            "count",
            "seed",
            "width",
            "height",
            "exact_size",
            "from_metadata",
            "noise",
        ],
    ),
    ("From a picture", &["init_image", "strength", "mask"]),
    ("Controlled by a picture", &["control", "control_image", "control_steps", "control_ready"]),
    (
        "Sampling",
        &["steps", "sampler", "scheduler", "eta", "churn", "sigmas", "batch_size", "vae_tile"],
    ),
    (
        "Guidance",
        &[
            "cfg_scale",
            "cfg_interval",
            "cfg_rescale",
            "cfg_normalize",
            "cfg_channels",
            "guide_model",
        ],
    ),
    PATCHES,
    (
        "Output",
        &["output", "grid", "show", "preview", "preview_interval", "no_metadata", "save_latents"],
    ),
];

/// Headings of the options of single commands.
const HEADINGS: [(&str, &[Heading]); 15] = [
    ("generate class", GENERATE),
    ("generate text", GENERATE),
    (
        "generate portrait",
        &[
            ("Model", &["model", "base"]),
            (
                "Pictures",
                &["profile", "reference", "photos", "profile_face", "face", "count", "seed"],
            ),
            (
                "Of a person who was learnt",
                &[
                    "adapter",
                    "edges",
                    "luminance",
                    "tile",
                    "keypoints",
                    "face_mask",
                    "class",
                    "prompt",
                    "shading",
                    "paste",
                    "harmonization",
                    "adapter_scale",
                    "inner_edges",
                ],
            ),
            ("Sampling", &["steps", "sampler", "cfg_scale", "cfg_light", "rho", "batch_size"]),
            ("Output", &["output", "stages", "report"]),
        ],
    ),
    (
        "portrait fit",
        &[
            (
                "Learning",
                &["steps", "rank", "batch", "lr", "prior", "prior_images", "best_of", "seed"],
            ),
            ("Output", &["output", "overwrite"]),
        ],
    ),
    ("train control", &[TRAINING]),
    ("train class", &[TRAINING]),
    ("train text", &[TRAINING]),
    ("train lora", &[TRAINING]),
    ("distill", &[TRAJECTORIES, STUDENT, TRAINING, PATCHES]),
    ("distill record", &[TRAJECTORIES, PATCHES]),
    ("distill train", &[STUDENT, TRAINING]),
    ("eval", &[JUDGING, MAKING, PATCHES]),
    ("eval text", &[MAKING, PATCHES]),
    ("sweep", &[JUDGING, MAKING]),
    (
        "bench",
        &[
            ("Model", &["model", "dtype", "steps", "cfg_scale", "text_tokens"]),
            (
                "Network that `train` and `--random` make",
                &["random", "hidden", "depth", "heads", "tokens", "mp"],
            ),
        ],
    ),
];

/// Examples of commands.
const EXAMPLES: [(&str, &[&str]); 24] = [
    (
        "generate class",
        &[
            "generate class --class cat,heart -n 4 --seed 7 -o \"%02d-{class}.png\"",
            "generate class --class random -n 16 --grid --steps 40 --sampler heun --cfg-scale 3",
            "generate class --fast",
            "generate class --from-metadata 00-cat.png",
        ],
    ),
    (
        "generate text",
        &[
            "generate text -m PixArt-Sigma-XL-2-1024-MS \"a lighthouse in the fog\" -W 1344 -H 768",
            "generate text -m Lumina-Image-2.0 \"a lighthouse in the fog\" --steps 40",
            "generate text -m Z-Image-Turbo \"a lighthouse in the fog\" -W 768 -H 512",
            "generate text -m PixArt-XL-2-512x512 \"a cat\" \"a dog\" -n 8 --negative-prompt \"a blurry photo\"",
            "generate text -m PixArt-XL-2-512x512 --prompt-file prompts.txt -o \"%03d-{prompt}.png\"",
            "generate text --from-metadata 000-a-cat.png",
        ],
    ),
    (
        "train class",
        &[
            "train class --data assets/data/emoji -o runs/mine --steps 200",
            "train class --data FOLDER -o runs/mine --set model.hidden=128 --set precision=bf16",
        ],
    ),
    ("train text", &["train text --data FOLDER --text-encoder t5-small -o runs/mine"]),
    (
        "train lora",
        &[
            "train lora -m PixArt-XL-2-512x512 --data FOLDER -o runs/style --rank 8",
            "generate text \"a cat\" -m PixArt-XL-2-512x512 --lora runs/style:0.8",
        ],
    ),
    ("train average", &["train average runs/mine --width 0.07 -o averaged"]),
    (
        "distill",
        &[
            "distill -m DiT-XL-2-256 -o runs/student -n 20000",
            "generate class -m runs/student/model --class 207",
        ],
    ),
    (
        "generate portrait",
        &[
            "generate portrait --profile me.png --reference evening.png -m runs/control --base runs/heads -n 4 -o \"%02d.png\"",
        ],
    ),
    (
        "train control",
        &[
            "train control -m runs/heads --data people --steps 200 -o runs/matching",
            "train control -m runs/heads --data people --matching runs/matching --steps 10000",
            "train control -m emoji-class --data emoji --kind edges -o runs/edges",
            "generate class -m emoji-class --class cat --control runs/edges:0.8 --control-image sketch.png",
        ],
    ),
    (
        "portrait fit",
        &[
            "portrait fit --photos me/ -m runs/heads -o me.safetensors",
            "generate portrait --adapter me.safetensors --reference evening.jpg --photos --base runs/heads --edges runs/edges --luminance runs/luminance --tile runs/tile",
            "generate class -m runs/heads --class 0 --lora me.safetensors",
        ],
    ),
    (
        "portrait matches",
        &[
            "portrait matches --profile me.png --reference evening.png -m runs/matching --base runs/heads -o matches.png",
        ],
    ),
    ("distill record", &["distill record -m emoji-class -o trajectories --worker 0/4"]),
    (
        "distill train",
        &["distill train --trajectories trajectories -m emoji-class -o runs/student"],
    ),
    ("distill compare", &["distill compare --trajectories others -m runs/student/model"]),
    ("inspect", &["inspect DiT-XL-2-256 --tensors"]),
    ("convert", &["convert DiT-XL-2-256x256.pt --vae sd-vae-ft-ema -o dit-xl --dtype f16"]),
    (
        "eval",
        &[
            "eval --reference FOLDER -m runs/mine/model -n 5000 --compute 60%",
            "eval --reference FOLDER --images OTHER --pairs nearest.png",
        ],
    ),
    (
        "eval text",
        &["eval text --reference FOLDER --columns style,background --held-out OTHER -m runs/text"],
    ),
    (
        "sweep",
        &["sweep --reference FOLDER -m runs/mine/model --schedules \"100%;60%\" -o sweep.csv"],
    ),
    (
        "flexify",
        &[
            "flexify DiT-XL-2-256 --patches 4 -o flexible",
            "flexify DiT-XL-2-256 --patches 4 --adapters 32 -o flexible",
            "flexify runs/mine --native 4 -o finer",
        ],
    ),
    (
        "merge",
        &[
            "merge runs/a/model runs/b/model -o merged",
            "merge PixArt-XL-2-512x512 --lora runs/style:0.8 -o styled",
        ],
    ),
    ("bench", &["bench forward generate -m DiT-XL-2-256 --dtype bf16", "bench train --batch 64"]),
    ("metadata", &["metadata 00-cat.png"]),
    ("completions", &["completions bash > ~/.local/share/bash-completion/completions/pyrograph"]),
];

/// The program as it is parsed and described.
pub(crate) fn command() -> Command {
    described(super::Cli::command(), "")
}

/// A command, at a path of names from the program on, and those below it.
fn described(command: Command, path: &str) -> Command {
    let own = HEADINGS.iter().find(|(name, _)| *name == path).map_or(&[][..], |(_, own)| own);
    let heading = |id: &str| {
        let mut all = own.iter().chain(COMMON);
        all.find(|(_, ids)| ids.contains(&id)).map(|(heading, _)| *heading)
    };
    let command = command.mut_args(|arg| match heading(arg.get_id().as_str()) {
        Some(heading) if !arg.is_positional() => arg.help_heading(heading),
        _ => arg,
    });
    let command = match EXAMPLES.iter().find(|(name, _)| *name == path) {
        Some((_, lines)) => command.after_help(
            lines.iter().fold("Examples:".to_owned(), |text, line| text + "\n  pyrograph " + line),
        ),
        None => command,
    };
    command.mut_subcommands(|below| {
        let path = format!("{path} {}", below.get_name());
        described(below, path.trim_start())
    })
}

/// Prints a completion script.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "pyrograph", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// Writes a manual page of every command.
pub(crate) fn manual(folder: &Path) -> anyhow::Result<()> {
    let written =
        std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(command(), folder));
    written.with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Command {
        let mut found = command();
        found.build();
        for name in path.split_whitespace() {
            found = found.find_subcommand(name).expect(path).clone();
        }
        found
    }

    #[test]
    fn the_program_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_heading_has_options() {
        for (path, headings) in HEADINGS {
            let command = at(path);
            for (heading, _) in headings.iter().chain(COMMON) {
                let has =
                    command.get_arguments().any(|arg| arg.get_help_heading() == Some(heading));
                assert!(has, "{path}: {heading}");
            }
        }
    }

    /// Placeholders of an example stand for files, which are not looked at here.
    #[test]
    fn every_example_is_understood() {
        for (path, lines) in EXAMPLES {
            at(path);
            for line in lines {
                let line = line.split(" > ").next().unwrap_or_default();
                // Every other part is in quotes, and one word.
                let words = line.split('"').enumerate().flat_map(|(i, part)| match i % 2 {
                    0 => part.split_whitespace().collect(),
                    _ => vec![part],
                });
                let parsed =
                    command().try_get_matches_from(std::iter::once("pyrograph").chain(words));
                assert!(parsed.is_ok(), "{line}: {}", parsed.expect_err("not understood"));
            }
        }
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let folder = tempfile::tempdir().expect("a folder");
        manual(folder.path()).expect("room for it");
        for page in ["pyrograph", "pyrograph-generate-class", "pyrograph-distill-record"] {
            let text = std::fs::read_to_string(folder.path().join(format!("{page}.1")));
            assert!(text.expect(page).contains(".SH"), "{page}");
        }
    }
}
