//! Which of several states of what was learnt is the most like the person.

use std::ops::ControlFlow;

use image::RgbImage;
use pyrograph_engine::nets::Tuned;
use pyrograph_engine::nets::face::DESCRIPTOR;

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::faces::{Faces, distance};
use crate::pipeline::Pipeline;
use crate::request::Request;
use crate::task::PromptTask;

/// Pictures that are made of each state.
const PICTURES: usize = 4;
/// How far a picture without a face is from the person: more than most strangers are.
const NO_FACE: f32 = 1.0;

/// What judges states: pictures by each, of the same noise, against the photos.
pub(super) struct Judge<'a, T: PromptTask> {
    faces: &'a Faces,
    pipeline: Pipeline<T>,
    request: Request<T::Prompt>,
    /// Of the faces in the photos.
    known: Vec<[f32; DESCRIPTOR]>,
}

impl<'a, T: PromptTask> Judge<'a, T> {
    /// # Errors
    /// Photos without a face.
    pub(super) fn new(
        faces: &'a Faces,
        pipeline: Pipeline<T>,
        prompt: T::Prompt,
        photos: &[RgbImage],
        seed: u64,
    ) -> Result<Self> {
        let seen = photos.iter().map(|photo| described(faces, photo));
        let known: Vec<_> = seen.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        if known.is_empty() {
            let reason = "no photo shows a face by which states could be chosen".into();
            return Err(Error::Picture { reason });
        }
        let request = Request { seed, ..Request::new(vec![prompt; PICTURES]) };
        Ok(Self { faces, pipeline, request, known })
    }

    /// Mean distance of the pictures of a state from the photos; those without a face are far away.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub(super) fn distance(
        &self,
        tuned: &Tuned,
        ask: &mut (dyn FnMut() -> ControlFlow<()> + Send),
    ) -> Result<f32> {
        let mut pipeline = self.pipeline.clone();
        pipeline.put_on(Adapter::learnt(tuned), 1.0)?;
        let (mut sum, mut failed) = (0.0, Ok(()));
        pipeline.each(&self.request, &mut |_| ask(), &mut |made| {
            match made.image.and_then(|image| described(self.faces, &image)) {
                Ok(Some(own)) => sum += self.apart(&own),
                Ok(None) | Err(Error::Degenerate { .. }) => sum += NO_FACE,
                Err(error) => failed = Err(error),
            }
            ControlFlow::Continue(())
        })?;
        failed?;
        Ok(sum / PICTURES as f32)
    }

    /// Mean distance of a face from those of the photos.
    fn apart(&self, own: &[f32; DESCRIPTOR]) -> f32 {
        self.known.iter().map(|known| distance(known, own)).sum::<f32>() / self.known.len() as f32
    }
}

/// Of the largest face in a picture, if there is one.
fn described(faces: &Faces, picture: &RgbImage) -> Result<Option<[f32; DESCRIPTOR]>> {
    Ok(faces.known(picture)?.map(|(_, descriptor)| descriptor))
}

/// The states that are compared, of so many `steps`: the last one and others before it, back to the middle.
pub(super) fn due(steps: u64, states: u64) -> Vec<u64> {
    let mut due: Vec<u64> =
        (1..=states).map(|state| steps - (states - state) * steps / (2 * states)).collect();
    due.dedup();
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_spread_over_the_second_half() {
        assert_eq!(due(200, 1), [200]);
        assert_eq!(due(200, 4), [125, 150, 175, 200]);
        assert_eq!(due(3, 8), [2, 3]);
        assert_eq!(due(1, 3), [1]);
    }
}
