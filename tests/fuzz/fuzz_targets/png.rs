//! Texts and settings in a PNG file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph::metadata::{self, Record};
use pyrograph::task::{ClassTask, TextTask};
use pyrograph_fuzz::folder;

fuzz_target!(|data: &[u8]| {
    let path = folder(&[("a.png", data)]).join("a.png");
    let _ = metadata::read(&path);
    if let Ok(record) = Record::read(&path) {
        let _ = record.request::<ClassTask>(&path);
        let _ = record.request::<TextTask>(&path);
    }
});
