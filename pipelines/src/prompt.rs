//! Prompts as the captions were that PixArt learned from.
//!
//! The rules are those of diffusers' `clean_caption`, which has them from DeepFloyd IF: a text is cleared of what web pages put
//! around a caption. They take away more than they should at times, but a model knows only captions that went through them.

mod charmaps;
mod html;
mod mend;

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Most hyphens and underscores that do not stand for spaces.
const HYPHENS: usize = 3;

/// What is replaced, all but a group `kept`, and what comes behind that.
type Rules = [(&'static str, &'static str)];

/// Addresses, of which those with a scheme lose only that, in a text that may be HTML.
#[rustfmt::skip]
const ADDRESSES: &Rules = &[
    ("<person>", "person"),
    (r"\b(?:https?:(?:/{1,3}|[a-zA-Z0-9%])|DOMAIN)", ""),
    (r"\b(?:www:(?:/{1,3}|[a-zA-Z0-9%])|DOMAIN)", ""),
];
/// A domain and a path, if no `@` is next.
const DOMAIN: &str =
    r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?P<kept>[^@]|$)";

/// Names, numbers and signs.
#[rustfmt::skip]
const SIGNS: &Rules = &[
    (r"@\w+", ""),
    // Chinese, and the signs before it.
    (r"[\u{31c0}-\u{9fff}]+", ""),
    (r"[\-֊־᐀᠆‐-―⸗⸚⸺⸻⹀〜〰゠︱︲﹘﹣－]+", "-"),
    ("[`´«»“”¨]", "\""),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    // Addresses of computers, and times at the end.
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    // Numbers of articles, and files.
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
    (r#"["']{2,}"#, "\""),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
];

/// Words of shops and codes, and white space at last.
#[rustfmt::skip]
const WORDS: &Rules = &[
    // jc6640, jc6640vc, 6640vc231
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    // j2d1a2a
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    // 1024x768, with a Latin or a Cyrillic letter or a sign between.
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(?P<kept>\D[,./])\b", " "),
    (r"\s+", " "),
];

/// What stands around a text.
#[rustfmt::skip]
const ENDS: &Rules = &[
    (r#"(?s)^["'](?P<kept>.+)["']$"#, ""),
    ("^['_,;:-]", ""),
    ("['_,:+-]$", ""),
    (r"^\.\S+$", ""),
];

/// A prompt as captions were cleaned for PixArt: twice, as diffusers does with `clean_caption`.
///
/// ```
/// # use pyrograph::prompt::clean;
/// assert_eq!(clean("A <b>Cat</b>,sitting (best-quality)  www.example.com"), "a cat, sitting best-quality");
/// ```
pub fn clean(prompt: &str) -> String {
    once(&once(prompt))
}

/// A prompt in lower case without white space at both ends: what diffusers makes of one without cleaning.
pub fn plain(prompt: &str) -> String {
    strip(&prompt.to_lowercase()).to_owned()
}

fn once(prompt: &str) -> String {
    static TABLES: LazyLock<[Vec<(Regex, &str)>; 4]> =
        LazyLock::new(|| [ADDRESSES, SIGNS, WORDS, ENDS].map(compiled));
    let [addresses, signs, words, ends] = &*TABLES;
    let text = html::text(&replaced(plain(&unquoted(prompt)), addresses));
    let text = mend::mend(&spaced(replaced(text, signs)));
    let text = replaced(html::unescaped(&html::unescaped(&text)), words);
    strip(&replaced(text, ends)).to_owned()
}

fn compiled(rules: &'static Rules) -> Vec<(Regex, &'static str)> {
    let regex = |pattern: &str| {
        Regex::new(&pattern.replace("DOMAIN", DOMAIN)).expect("the rules are constant, and tested")
    };
    rules.iter().map(|&(pattern, by)| (regex(pattern), by)).collect()
}

fn replaced(mut text: String, rules: &[(Regex, &str)]) -> String {
    let mut seen = as_seen(&text);
    for (regex, by) in rules {
        let (mut new_text, mut new_seen) = (String::new(), String::new());
        let mut rest = 0;
        for found in regex.captures_iter(&seen) {
            let range = found.get_match().range();
            let kept = found.name("kept").map_or(range.start..range.start, |kept| kept.range());
            for (new, old) in [(&mut new_text, &text), (&mut new_seen, &seen)] {
                new.extend([&old[rest..range.start], &old[kept.clone()], by]);
            }
            rest = range.end;
        }
        if rest > 0 {
            text = new_text + &text[rest..];
            seen = new_seen + &seen[rest..];
        }
    }
    text
}

/// A text as Python's expressions see it: marks are no letters there, `²` is, and some control characters are spaces. For
/// each such character stands one that is of that kind to [`Regex`] too, and as long.
fn as_seen(text: &str) -> String {
    static OTHER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"[\w\p{N}--[\p{L}\p{Decimal_Number}\p{Letter_Number}_½¾\u{3200}-\u{9fff}]]|[\x1c-\x1f]")
            .expect("a constant, and tested")
    });
    let usual = |found: &Captures| {
        let number = found[0].starts_with(char::is_numeric);
        match (number, found[0].len()) {
            (_, 1) => "\x0b",
            (false, 2) => "¤",
            (false, 3) => "⁂",
            (false, _) => "🙂",
            (true, 2) => "ƿ",
            (true, 3) => "ᚠ",
            (true, _) => "𐐨",
        }
    };
    OTHER.replace_all(text, usual).into_owned()
}

/// With `%20` and `+` for a space.
fn unquoted(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(&byte) = bytes.get(i) {
        let escape = text.get(i + 1..i + 3).filter(|hex| byte == b'%' && !hex.contains('+'));
        let escape = escape.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        i += if escape.is_some() { 3 } else { 1 };
        out.push(escape.unwrap_or(if byte == b'+' { b' ' } else { byte }));
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// With spaces for hyphens where there are many.
fn spaced(text: String) -> String {
    let hyphens = ['-', '_'];
    if text.matches(hyphens).count() > HYPHENS { text.replace(hyphens, " ") } else { text }
}

/// Without what is white space to Python at both ends.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

#[cfg(test)]
mod tests;
