//! Text files as people have them.

use std::io::Read;
use std::path::Path;

use pyrograph_weights::{check_pointer, open_file};

use crate::error::{Error, Result};

/// Most bytes of a text file.
const LIMIT: u64 = 256 << 20;

/// The text of a file in UTF-8, or in UTF-16 behind a byte order mark; the mark is left out.
///
/// # Errors
/// [`Error::TooLarge`] above 256 MiB; what is no file, no text, or cannot be read.
pub fn read_text(path: &Path) -> Result<String> {
    let fault = |source| Error::File { path: path.to_owned(), source };
    let (mut file, need) = open_file(path)?;
    if need > LIMIT {
        let path = path.to_owned();
        return Err(Error::TooLarge { path, what: "the file".into(), need, limit: LIMIT });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(fault)?;
    check_pointer(path, &bytes)?;
    text(bytes).ok_or_else(|| fault(std::io::Error::other("not a text in UTF-8")))
}

fn text(bytes: Vec<u8>) -> Option<String> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, rest) = bytes.as_chunks::<2>();
        let units: Vec<u16> = units.iter().map(|&pair| unit(pair)).collect();
        rest.is_empty().then(|| String::from_utf16(&units).ok()).flatten()
    };
    match bytes.as_slice() {
        [0xFF, 0xFE, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        _ => String::from_utf8(bytes).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_the_byte_order_are_understood() {
        let word = "grün 🙂";
        let units: Vec<u16> = word.encode_utf16().collect();
        let wide = |mark: [u8; 2], unit: fn(u16) -> [u8; 2]| {
            let body = units.iter().flat_map(|&value| unit(value));
            mark.into_iter().chain(body).collect::<Vec<u8>>()
        };
        let marked = [[0xEF, 0xBB, 0xBF].as_slice(), word.as_bytes()].concat();
        let little = wide([0xFF, 0xFE], u16::to_le_bytes);
        let big = wide([0xFE, 0xFF], u16::to_be_bytes);
        for bytes in [word.as_bytes().to_vec(), marked, little.clone(), big] {
            assert_eq!(text(bytes).as_deref(), Some(word));
        }
        assert_eq!(text(little[..little.len() - 1].to_vec()), None);
        assert_eq!(text(vec![b'a', 0xFF]), None);
    }
}
