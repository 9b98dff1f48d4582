//! Texts in Exif: A1111's `parameters` as the comment of the user, where A1111 has it, and all others in the description,
//! each after its keyword.

use std::collections::BTreeMap;
use std::io::Cursor;

use exif::experimental::Writer;
use exif::{Field, In, Reader, Tag, Value};

/// Keyword of the comment.
const COMMENT: &str = "parameters";
/// Keyword of a description that others wrote.
const DESCRIPTION: &str = "description";
/// Code of comments in UTF-16.
const UNICODE: &[u8; 8] = b"UNICODE\0";
/// Code of comments in ASCII.
const ASCII: &[u8; 8] = b"ASCII\0\0\0";

/// Exif that holds these texts; `None` where it cannot.
pub(crate) fn exif(texts: &[(String, String)]) -> Option<Vec<u8>> {
    let (comments, others): (Vec<_>, Vec<_>) = texts.iter().partition(|(key, _)| key == COMMENT);
    let described = others.iter().map(|(key, text)| format!("{key}: {text}").into_bytes());
    let field = |tag, value| Field { tag, ifd_num: In::PRIMARY, value };
    let description = field(Tag::ImageDescription, Value::Ascii(described.collect()));
    let comment = comments.first().map(|(_, text)| {
        let units = text.encode_utf16().flat_map(u16::to_be_bytes);
        let coded = UNICODE.iter().copied().chain(units).collect();
        field(Tag::UserComment, Value::Undefined(coded, 0))
    });
    let mut writer = Writer::new();
    if !others.is_empty() {
        writer.push_field(&description);
    }
    comment.iter().for_each(|comment| writer.push_field(comment));
    let mut bytes = Cursor::new(Vec::new());
    writer.write(&mut bytes, false).ok()?;
    Some(bytes.into_inner())
}

/// The texts of Exif, none of what is no Exif.
pub(super) fn texts(exif: Vec<u8>) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    let Ok(exif) = Reader::new().read_raw(exif) else { return texts };
    let value = |tag| exif.get_field(tag, In::PRIMARY).map(|field| &field.value);
    if let Some(Value::Ascii(parts)) = value(Tag::ImageDescription) {
        for part in parts {
            let part = String::from_utf8_lossy(part).into_owned();
            let keyed = part.split_once(": ").filter(|(key, _)| !key.contains(char::is_whitespace));
            let (key, text) = keyed.unwrap_or((DESCRIPTION, &part));
            texts.insert(key.to_owned(), text.to_owned());
        }
    }
    if let Some(Value::Undefined(coded, _)) = value(Tag::UserComment)
        && let Some(text) = comment(coded)
    {
        texts.insert(COMMENT.to_owned(), text);
    }
    texts
}

/// A comment after its code of eight bytes.
fn comment(coded: &[u8]) -> Option<String> {
    let (code, text) = coded.split_at_checked(UNICODE.len())?;
    if code == ASCII {
        return Some(String::from_utf8_lossy(text).into_owned());
    }
    if code != UNICODE {
        return None;
    }
    // Writers agree on no order of the bytes: the one in which the first letter is a common one.
    let unit: fn([u8; 2]) -> u16 = match text {
        [_, 0, ..] => u16::from_le_bytes,
        _ => u16::from_be_bytes,
    };
    let units: Vec<u16> = text.as_chunks::<2>().0.iter().copied().map(unit).collect();
    Some(String::from_utf16_lossy(&units))
}
