//! The texts of a picture: chunks of PNG, Exif in JPEG and WebP.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use pyrograph_weights::open_file;

use super::exif;
use crate::error::{Error, Result};

/// Most that the texts of one picture may take, in bytes, compressed or not.
const TEXT_LIMIT: usize = 8 << 20;
/// Most texts of one picture.
const COUNT_LIMIT: usize = 1024;

/// All texts of a PNG, JPEG or WebP by keyword. Those of a damaged end, and of chunks whose checksum is wrong, are left
/// out.
///
/// # Errors
/// A file that is none of these, and texts of more than 8 MiB, compressed or not, or more than 1,024.
pub fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let (file, _) = open_file(path)?;
    texts(&mut BufReader::new(file))
        .map_err(|reason| Error::Metadata { path: path.to_owned(), reason: reason.into() })
}

type Texts = BTreeMap<String, String>;
/// What is wrong.
type Fault = &'static str;

const TOO_LARGE: Fault = "its texts are larger than 8 MiB";
const TOO_MANY: Fault = "it has more than 1,024 texts";

fn texts(reader: &mut (impl Read + Seek)) -> std::result::Result<Texts, Fault> {
    let mut start = Vec::new();
    reader.take(12).read_to_end(&mut start).map_err(|_| "it cannot be read")?;
    let (exif, skip) = match start.as_slice() {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => {
            rewind(reader, 8)?;
            return png(reader);
        }
        [0xff, 0xd8, ..] => {
            rewind(reader, 2)?;
            (jpeg(reader)?, b"Exif\0\0".as_slice())
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => (webp(reader)?, &[][..]),
        _ => return Err("neither PNG, JPEG nor WebP"),
    };
    let exif = exif.map(|exif| exif.strip_prefix(skip).unwrap_or(&exif).to_vec());
    Ok(exif.map(exif::texts).unwrap_or_default())
}

fn rewind(reader: &mut impl Seek, to: u64) -> std::result::Result<(), Fault> {
    reader.seek(io::SeekFrom::Start(to)).map(drop).map_err(|_| "it cannot be read")
}

/// So many bytes; `None` where the file ends before.
fn bytes(reader: &mut impl Read, count: usize) -> Option<Vec<u8>> {
    let mut read = Vec::new();
    reader.take(count as u64).read_to_end(&mut read).ok()?;
    (read.len() == count).then_some(read)
}

/// The texts in the chunks after the signature.
fn png(reader: &mut (impl Read + Seek)) -> std::result::Result<Texts, Fault> {
    let mut texts = Texts::new();
    let (mut left, mut count) = (TEXT_LIMIT, 0);
    let mut is_first = true;
    while let Some(head) = bytes(reader, 8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = &head[4..];
        if is_first && (kind, length) != (b"IHDR", 13) {
            return Err("a PNG without a header");
        }
        is_first = false;
        if !matches!(kind, b"tEXt" | b"zTXt" | b"iTXt") {
            let next = reader.seek_relative(length as i64 + 4);
            if next.is_err() || kind == b"IEND" {
                break;
            }
            continue;
        }
        left = left.checked_sub(length).ok_or(TOO_LARGE)?;
        count += 1;
        if count > COUNT_LIMIT {
            return Err(TOO_MANY);
        }
        let Some((data, sum)) = bytes(reader, length).zip(bytes(reader, 4)) else { break };
        let mut hash = crc32fast::Hasher::new();
        hash.update(kind);
        hash.update(&data);
        if sum == hash.finalize().to_be_bytes()
            && let Some((keyword, text)) = entry(kind, &data, left)?
        {
            left = left.checked_sub(text.len()).ok_or(TOO_LARGE)?;
            texts.insert(keyword, text);
        }
    }
    match is_first {
        true => Err("a PNG without a header"),
        false => Ok(texts),
    }
}

/// Keyword and text of a chunk, of at most `limit` bytes; `None` for one that is no text.
fn entry(
    kind: &[u8],
    data: &[u8],
    limit: usize,
) -> std::result::Result<Option<(String, String)>, Fault> {
    let Some((keyword, rest)) = split(data) else { return Ok(None) };
    let keyword = latin(keyword);
    let text = match (kind, rest) {
        (b"tEXt", text) => Some(latin(text)),
        (b"zTXt", [0, text @ ..]) => inflate(text, limit)?.map(|text| latin(&text)),
        (b"iTXt", [compressed, method, rest @ ..]) => {
            // The language, and the keyword in that.
            let text = split(rest).and_then(|(_, rest)| split(rest)).map(|(_, text)| text);
            let text = match (text, compressed, method) {
                (Some(text), 0, _) => Some(text.to_vec()),
                (Some(text), 1, 0) => inflate(text, limit)?,
                _ => None,
            };
            text.and_then(|text| String::from_utf8(text).ok())
        }
        _ => None,
    };
    Ok(text.map(|text| (keyword, text)))
}

/// What comes before and after the first zero.
fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = data.iter().position(|byte| *byte == 0)?;
    Some((&data[..at], &data[at + 1..]))
}

fn latin(text: &[u8]) -> String {
    text.iter().map(|byte| char::from(*byte)).collect()
}

/// At most `limit` bytes; `None` for what is damaged.
fn inflate(data: &[u8], limit: usize) -> std::result::Result<Option<Vec<u8>>, Fault> {
    match fdeflate::decompress_to_vec_bounded(data, limit) {
        Ok(text) => Ok(Some(text)),
        Err(fdeflate::BoundedDecompressionError::OutputTooLarge { .. }) => Err(TOO_LARGE),
        Err(_) => Ok(None),
    }
}

/// The segment with Exif, after the start of the image.
fn jpeg(reader: &mut (impl Read + Seek)) -> std::result::Result<Option<Vec<u8>>, Fault> {
    while let Some(head) = bytes(reader, 4) {
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        // The pixels follow on a start of scan.
        if head[0] != 0xff || head[1] == 0xda || length < 2 {
            break;
        }
        let Some(data) = bytes(reader, length - 2) else { break };
        if head[1] == 0xe1 && data.starts_with(b"Exif\0\0") {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// The chunk with Exif, after the header.
fn webp(reader: &mut (impl Read + Seek)) -> std::result::Result<Option<Vec<u8>>, Fault> {
    while let Some(head) = bytes(reader, 8) {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if &head[..4] == b"EXIF" {
            return match length > TEXT_LIMIT {
                true => Err(TOO_LARGE),
                false => Ok(bytes(reader, length)),
            };
        }
        // Chunks begin at even places.
        if reader.seek_relative(length.next_multiple_of(2) as i64).is_err() {
            break;
        }
    }
    Ok(None)
}
