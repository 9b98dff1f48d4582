//! Weights that are read from their file whenever they are needed, the next ones while others are at work.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pyrograph_engine::ops::Compressed;
use pyrograph_weights::Filed;

use super::stored::Stored;
use crate::error::Error;

/// Matrices of which two are in memory: the one that is needed, and the one that was needed after it the last time.
#[derive(Debug)]
pub(crate) struct Stream {
    matrices: Vec<Filed>,
    state: Mutex<State>,
    /// A matrix came, or could not be read.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    there: BTreeMap<usize, Arc<Stored>>,
    /// Those that are being read.
    coming: BTreeSet<usize>,
    /// The last one that was needed.
    last: usize,
    /// Which was needed after each.
    next: Vec<usize>,
    failure: Option<Error>,
}

impl Stream {
    /// Matrices in the order in which a network likely needs them.
    pub(super) fn new(matrices: Vec<Filed>) -> Arc<Self> {
        let count = matrices.len();
        let state = State {
            there: BTreeMap::new(),
            coming: BTreeSet::new(),
            last: count.saturating_sub(1),
            next: (0..count).map(|i| (i + 1) % count).collect(),
            failure: None,
        };
        Arc::new(Self { matrices, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// A matrix as a weight of a network.
    pub(super) fn weight(self: &Arc<Self>, index: usize) -> Arc<dyn Compressed> {
        Arc::new(Streamed { stream: self.clone(), index })
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.state().failure.take()
    }

    /// Nothing that panics holds it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A matrix, once it is there; none, and a failure, where it cannot be read.
    fn get(self: &Arc<Self>, index: usize) -> Option<Arc<Stored>> {
        let mut state = self.state();
        if state.last != index {
            let last = std::mem::replace(&mut state.last, index);
            state.next[last] = index;
        }
        let next = state.next[index];
        state.there.retain(|&other, _| other == index || other == next);
        let found = loop {
            if let Some(found) = state.there.get(&index) {
                break found.clone();
            }
            if !state.coming.insert(index) {
                let woken = self.changed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            let failure = self.read(index);
            state = self.state();
            if let Some(failure) = failure {
                state.failure = Some(failure);
                return None;
            }
        };
        if !state.there.contains_key(&next) && state.coming.insert(next) {
            let stream = self.clone();
            // What goes wrong here, whoever needs the matrix finds, too.
            let reader = std::thread::Builder::new().spawn(move || drop(stream.read(next)));
            if reader.is_err() {
                state.coming.remove(&next);
            }
        }
        Some(found)
    }

    /// Reads a matrix that is coming.
    fn read(&self, index: usize) -> Option<Error> {
        let read = self.matrices[index].read();
        let mut state = self.state();
        state.coming.remove(&index);
        self.changed.notify_all();
        match read {
            Ok(matrix) => {
                state.there.insert(index, Arc::new(Stored(matrix)));
                None
            }
            Err(error) => Some(error.into()),
        }
    }
}

/// One of them as a weight.
#[derive(Debug)]
struct Streamed {
    stream: Arc<Stream>,
    index: usize,
}

impl Compressed for Streamed {
    fn widths(&self) -> [usize; 2] {
        self.stream.matrices[self.index].widths()
    }

    fn ready(&self) -> Option<Arc<dyn Compressed>> {
        Some(match self.stream.get(self.index) {
            Some(found) => found,
            None => Arc::new(Lost(self.widths())),
        })
    }

    fn read(&self, outputs: Range<usize>, inputs: Range<usize>, values: &mut [f32]) {
        if let Some(ready) = self.ready() {
            ready.read(outputs, inputs, values);
        }
    }
}

/// A weight that could not be read: no number that comes of it can be taken for one.
#[derive(Debug)]
struct Lost([usize; 2]);

impl Compressed for Lost {
    fn widths(&self) -> [usize; 2] {
        self.0
    }

    fn read(&self, _: Range<usize>, _: Range<usize>, values: &mut [f32]) {
        values.fill(f32::NAN);
    }
}
