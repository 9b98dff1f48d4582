use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;

use pyrograph::{ClassPipeline, OpenOptions, Request};

type Result = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result {
    let pipeline = &ClassPipeline::open("emoji-class", &OpenOptions::default())?;
    let draw = |class: &str| -> Result {
        let request = Request { seed: 7, ..Request::new([pipeline.class(class)?]) };
        let generated = pipeline.generate(&request, &mut |progress| {
            eprintln!("{class}: step {} of {}", progress.step + 1, progress.steps);
            if Path::new("stop").exists() { Break(()) } else { Continue(()) }
        })?;
        Ok(generated.images[0].save(format!("{class}.png"))?)
    };
    std::thread::scope(|scope| {
        let threads = ["cat", "heart"].map(|class| scope.spawn(move || draw(class)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}
