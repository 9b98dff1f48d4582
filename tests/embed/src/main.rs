use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use pyrograph::{ClassPipeline, OpenOptions, Request};

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let seconds = std::env::args().nth(1).map_or(Ok(60), |seconds| seconds.parse())?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let pipeline = ClassPipeline::open("emoji-class", &OpenOptions::default())?;
    let draw = |class: &str| {
        let request = Request::new([pipeline.class(class)?]);
        let generated = pipeline.generate(&request, &mut |progress| {
            eprintln!("{class}: step {} of {}", progress.step + 1, progress.steps);
            if Instant::now() < end { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(generated.images[0].save(format!("{class}.png"))?)
    };
    std::thread::scope(|scope| {
        let threads = ["cat", "heart"].map(|class| scope.spawn(move || draw(class)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}
