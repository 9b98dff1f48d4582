//! What Speer's ftfy 6.3 (Apache License 2.0) mends in a text: characters that were read in a wrong encoding, above all.
//!
//! Texts come here in lower case and without `&` and `[`: so there are no entities, no escapes of terminals, and fewer of the
//! signs of wrong encodings.

use std::sync::LazyLock;

use regex::Regex;
use regex::bytes::{Captures, Regex as Bytes};
use unicode_normalization::UnicodeNormalization;

use super::charmaps::{MAC, characters, count, encoded, lossy, windows_1252};

/// Most times that a line is mended.
const ROUNDS: usize = 32;

/// Characters that are found where UTF-8 was read in another encoding, by what else they are for.
#[rustfmt::skip]
const KINDS: [(&str, &str); 11] = [
    ("BAD", "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊�ªº"),
    ("LAW", "¶§"),
    ("CURRENCY", "¢£¥₧€"),
    ("OPENING", "¡«¿©΄΅‘‚“„•‹\u{f8ff}"),
    ("CLOSING", "®»˝”›™"),
    ("NUMBER", "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№"),
    ("ACCENTED", "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ"),
    ("FACE", "ò-öø-ü°"),
    ("GREEK", "α-ωάέήίΰ"),
    ("CYRILLIC", "а-џ"),
    ("BOX", "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓"),
];
/// What hardly anybody writes.
#[rustfmt::skip]
const ODD: &[&str] = &[
    r"[\u{80}-\u{9f}]",
    "[BAD ACCENTED BOX OPENING CLOSING CURRENCY NUMBER LAW][BAD]",
    "[BAD][ACCENTED BOX OPENING CLOSING CURRENCY NUMBER LAW]",
    "[a-zA-Z][GREEK CYRILLIC][BAD]",
    "[BOX CLOSING CURRENCY NUMBER][ACCENTED]",
    "[ACCENTED BOX CLOSING][CURRENCY]",
    "[BOX][NUMBER LAW]",
    "[ACCENTED BOX CURRENCY CLOSING][OPENING][NUMBER]",
    "[ACCENTED CURRENCY NUMBER BOX LAW][CLOSING][OPENING]",
    "[CURRENCY NUMBER BOX][OPENING]",
    "[BOX][FACE CLOSING]",
    "[ACCENTED CURRENCY NUMBER OPENING CLOSING LAW][BOX]",
    r"[ACCENTED][OPENING CLOSING][\p{L}\p{N}_]",
    "œ[^A-Za-z]",
    "×[²³]",
    "à[²µ¹¼½¾]",
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚[âó][àä°ê]",
    r"β€[™\u{a0}\u{ad}®°]",
    "ā€",
    // In capitals, which only decoding brings.
    r"[ÂÃ][\u{a0}-¶¸-¿]",
];

static IS_ODD: LazyLock<Regex> = LazyLock::new(|| {
    let rules = ODD.join("|").replace(' ', "");
    let rules = KINDS.iter().fold(rules, |rules, (name, kind)| rules.replace(name, kind));
    Regex::new(&rules).expect("the rules are constant, and tested")
});
/// Characters of UTF-8 behind what is none of its later bytes.
static EMBEDDED: LazyLock<Regex> = LazyLock::new(|| {
    let later = characters(|byte| byte < 0xc0);
    let strict = later.replace(['–', '—', '―', '‘', '’', '‚', '“', '”', '„', '•', '…'], "");
    let two = characters(|byte| (0xc2..0xe0).contains(&byte));
    let three = characters(|byte| (0xe0..0xf0).contains(&byte));
    let four = characters(|byte| [0xf0, 0xf3].contains(&byte));
    Regex::new(&format!(
        "(?P<before>^|[^{strict}])(?P<found>(?:[{two}][ {later}]|[{three}][ {later}]{{2}}|[{four}][ {later}]{{3}})+)"
    ))
    .expect("no character of these has a meaning in a pattern")
});
/// Characters of UTF-8 with a space for their byte 160.
static SPACED: LazyLock<Bytes> = LazyLock::new(|| {
    bytes(
        r"[\xc2\xc3\xc5\xce\xd0\xd9] |[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]
        |[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] |\xf0 [\x80-\xbf]{2}
        |\xf0[\x80-\xbf] [\x80-\xbf]|\xf0[\x80-\xbf]{2} ",
    )
});
/// Characters of UTF-8 of which some bytes are lost.
static LOST: LazyLock<Bytes> = LazyLock::new(|| {
    bytes(
        r"[\xc2-\xdf]\x1a|[\xc2\xc3]\?|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]
        |[\xf0-\xf4][\x1a?][\x1a\x80-\xbf]{2}|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]
        |[\xf0-\xf4][\x1a\x80-\xbf]{2}[\x1a?]|\x1a",
    )
});

fn bytes(pattern: &str) -> Bytes {
    let lines: Vec<&str> = pattern.split('\n').map(|line| line.trim_start()).collect();
    Bytes::new(&format!("(?-u){}", lines.concat())).expect("the patterns are constant, and tested")
}

/// A text whose lines are mended, each by itself.
pub fn mend(text: &str) -> String {
    text.replace("\r\n", "\n").split_inclusive('\n').map(line).collect()
}

fn line(line: &str) -> String {
    let mut text = line.to_owned();
    for _ in 0..ROUNDS {
        let mut usual = String::with_capacity(text.len());
        decoded(&text).chars().for_each(|c| push(c, &mut usual));
        let next = usual.nfc().collect();
        if next == text {
            break;
        }
        text = next;
    }
    text
}

/// A text as it was before it was read in a wrong encoding, or in several.
fn decoded(text: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..ROUNDS {
        if text.is_ascii() || !IS_ODD.is_match(&text) {
            break;
        }
        let next = whole(&text).unwrap_or_else(|| parts(&text));
        let next = if next == text { text.chars().map(windows_1252).collect() } else { next };
        if next == text {
            break;
        }
        text = next;
    }
    text
}

/// All of a text in the first encoding in which it is UTF-8.
fn whole(text: &str) -> Option<String> {
    (0..count()).find_map(|encoding| {
        let mut bytes = encoded(text, encoding)?;
        if encoding != MAC {
            let unspaced = |found: &Captures| {
                found[0]
                    .iter()
                    .map(|&byte| if byte == b' ' { 0xa0 } else { byte })
                    .collect::<Vec<u8>>()
            };
            bytes = SPACED.replace_all(&bytes, unspaced).into_owned();
        }
        if lossy(encoding) {
            bytes = LOST.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
        }
        String::from_utf8(bytes).ok()
    })
}

/// What of a text looks like UTF-8 and like nothing else.
fn parts(text: &str) -> String {
    let part = |found: &regex::Captures| {
        let (before, part) = (&found["before"], &found["found"]);
        let whole = part.len() == text.len() || !IS_ODD.is_match(part);
        format!("{before}{}", if whole { part.to_owned() } else { decoded(part) })
    };
    EMBEDDED.replace_all(text, part).into_owned()
}

/// A character in its usual form.
fn push(c: char, out: &mut String) {
    match windows_1252(c) {
        // Ligatures, wide letters and narrow ones.
        'ﬅ' => out.push_str("ſt"),
        'ĳ' | 'ŉ' | 'ǆ' | 'ǉ' | 'ǌ' | 'ǳ' | 'ﬀ'..='ﬆ' | '\u{ff01}'..='\u{ffef}' => {
            out.extend(c.nfkc());
        }
        '\u{3000}' => out.push(' '),
        'ʼ' | '‘'..='‛' => out.push('\''),
        '“'..='‟' => out.push('"'),
        '\r' | '\u{2028}' | '\u{2029}' => out.push('\n'),
        // No effect on what a text looks like.
        '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' => {}
        '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}' => {}
        c => out.push(c),
    }
}
