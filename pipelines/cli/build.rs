//! Folds identical functions in the binary where the linker can: the GPU stack instantiates the same code
//! for many types. Names the commit and the features in what `--version` tells.

use std::process::Command;

fn main() {
    let variable = |name: &str| std::env::var(name).ok();
    if variable("TARGET").as_deref() == Some("x86_64-unknown-linux-gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
    println!("cargo:rerun-if-changed=build.rs");

    // A commit moves the end of this log; without a checkout there is none.
    if let Some(log) = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    let features = ["gpu", "vulkan", "autotune"]
        .into_iter()
        .filter(|feature| variable(&format!("CARGO_FEATURE_{}", feature.to_uppercase())).is_some());
    let mut parts: Vec<String> = git(&["rev-parse", "--short=10", "HEAD"]).into_iter().collect();
    parts.extend(features.map(str::to_owned));
    let version = variable("CARGO_PKG_VERSION").unwrap_or_default();
    match parts.is_empty() {
        true => println!("cargo:rustc-env=PYROGRAPH_VERSION={version}"),
        false => println!("cargo:rustc-env=PYROGRAPH_VERSION={version} ({})", parts.join(", ")),
    }
}

/// What git says of this checkout.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
