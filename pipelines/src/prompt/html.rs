//! The text of HTML, as Python's `html.parser` and Beautiful Soup read it.

use std::collections::HashMap;
use std::sync::LazyLock;

use entities::ENTITIES;
use regex::{Captures, Regex};

use super::charmaps::windows_1252;

/// Elements without an end.
const VOID: &str = "area base basefont bgsound br col command embed frame hr image img input isindex keygen link menuitem meta \
                    nextid param source spacer track wbr";
/// Elements whose text is not part of the text around them.
const HIDDEN: [&str; 3] = ["rp", "rt", "template"];
/// Elements that are not read.
const SKIPPED: [&str; 2] = ["script", "style"];

/// Most bytes of a tag that begins an element.
const TAG: usize = 4096;

static NAMES: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    ENTITIES.iter().map(|entity| (&entity.entity[1..], entity.characters)).collect()
});

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns are constant, and tested")
}

/// The text of a fragment of HTML in lower case.
pub fn text(source: &str) -> String {
    let tail = source.len() - source.rfind('>').map_or(0, |at| at + 1);
    let mut reader = Reader { rest: source, tail, ..Reader::default() };
    while !reader.rest.is_empty() {
        reader.step();
    }
    reader.out
}

#[derive(Default)]
struct Reader<'a> {
    rest: &'a str,
    out: String,
    open: Vec<&'a str>,
    /// How often a name is among the open elements.
    counts: HashMap<&'a str, usize>,
    /// How many of the open elements hide their text.
    hidden: usize,
    /// How many bytes there are behind the last `>`.
    tail: usize,
    /// Whether something was incomplete, which the parser forgives once.
    faulty: bool,
}

impl<'a> Reader<'a> {
    fn step(&mut self) {
        let plain = self.rest.find(['&', '<']).unwrap_or(self.rest.len());
        self.take(plain);
        if self.rest.starts_with('<') {
            self.markup();
        } else if self.rest.starts_with("&#") {
            self.number();
        } else if !self.rest.is_empty() {
            self.name();
        }
    }

    fn say(&mut self, text: &str) {
        if self.hidden == 0 {
            self.out.push_str(text);
        }
    }

    /// So many bytes as they are.
    fn take(&mut self, len: usize) {
        let (text, rest) = self.rest.split_at(len);
        self.say(text);
        self.rest = rest;
    }

    fn number(&mut self) {
        static NUMBER: LazyLock<Regex> =
            LazyLock::new(|| regex("^&(#(?:[0-9]+|x[0-9a-f]+))(;|[^0-9a-f;])"));
        if let Some(found) = NUMBER.captures(self.rest) {
            self.say(character(&found[1]).encode_utf8(&mut [0; 4]));
            self.rest = &self.rest[1 + found[1].len() + usize::from(&found[2] == ";")..];
        } else if self.faulty || !self.rest.contains(';') {
            self.take(self.rest.len());
        } else {
            self.faulty = true;
            self.take(2);
        }
    }

    fn name(&mut self) {
        static NAME: LazyLock<Regex> =
            LazyLock::new(|| regex("^&([a-z][a-z0-9.-]*)(;|[^a-z0-9;])"));
        if let Some(found) = NAME.captures(self.rest) {
            match NAMES.get(format!("{};", &found[1]).as_str()) {
                Some(text) => self.say(text),
                None => self.say(&self.rest[..1 + found[1].len()]),
            }
            self.rest = &self.rest[1 + found[1].len() + usize::from(&found[2] == ";")..];
        } else if self.rest.len() == 2 && self.rest.ends_with(|c: char| c.is_ascii_lowercase()) {
            self.rest = &self.rest[1..];
        } else {
            self.take(1);
        }
    }

    /// Where the next `>` is.
    fn close(&self) -> Option<usize> {
        (self.rest.len() > self.tail).then(|| self.rest.find('>')).flatten()
    }

    /// What begins with `<`.
    fn markup(&mut self) {
        let len = match self.rest[1..].chars().next() {
            Some('a'..='z') => self.start(),
            Some('/') => self.end(),
            Some('!' | '?') => self.aside(),
            _ => return self.take(1),
        };
        if let Some(len) = len {
            self.rest = &self.rest[len..];
        } else {
            self.faulty = true;
            let len = match self.close() {
                Some(end) => end + 1,
                None => 1 + self.rest[1..].find('<').unwrap_or(0),
            };
            self.take(len);
        }
    }

    /// A tag that begins an element.
    fn start(&mut self) -> Option<usize> {
        static START: LazyLock<Regex> = LazyLock::new(|| {
            let name = r#"(?:[\s/]+[^\s/>]|[^\s/>='"])[^\s/=>]*"#;
            let value = r#"\s*=+(?:\s*'[^']*'|\s*"[^"]*"|\s*[^\s>'"][^\s>]*)?"#;
            regex(&format!(r"^<([a-z][^\t\n\f\r />\x00]*)(?:{name}(?:{value})?)*[\s/]*>"))
        });
        static SKIPPED_END: LazyLock<Regex> =
            LazyLock::new(|| regex(&format!(r"</\s*({})\s*>", SKIPPED.join("|"))));
        self.close()?;
        let end = self.rest.floor_char_boundary(TAG);
        let found = START.captures(&self.rest[..end])?;
        let name = found.get(1).expect("a name").as_str();
        let (len, empty) = (found[0].len(), found[0].ends_with("/>"));
        if empty || VOID.split(' ').any(|void| void == name) {
            return Some(len);
        }
        if SKIPPED.contains(&name) {
            let mut ends =
                SKIPPED_END.captures_iter(&self.rest[len..]).filter(|end| &end[1] == name);
            let end = ends.next().map(|end| end.get(0).expect("a match").end());
            return Some(end.map_or(self.rest.len(), |end| len + end));
        }
        self.open.push(name);
        *self.counts.entry(name).or_default() += 1;
        self.hidden += usize::from(HIDDEN.contains(&name));
        Some(len)
    }

    /// A tag that ends an element, and those in it.
    fn end(&mut self) -> Option<usize> {
        let end = self.close()?;
        let name = self.rest[2..end].trim_start();
        let name = name.split(|c: char| c == '/' || c.is_whitespace()).next().unwrap_or(name);
        let mut done = self.counts.get(name).is_none_or(|&count| count == 0);
        while !done && let Some(last) = self.open.pop() {
            *self.counts.entry(last).or_default() -= 1;
            self.hidden -= usize::from(HIDDEN.contains(&last));
            done = last == name;
        }
        Some(end + 1)
    }

    /// Comments, declarations and instructions.
    fn aside(&mut self) -> Option<usize> {
        static COMMENT: LazyLock<Regex> = LazyLock::new(|| regex(r"--\s*>"));
        static CDATA: LazyLock<Regex> =
            LazyLock::new(|| regex(r"(?s)^<!\[cdata\[(.*?)\]\s*\]\s*>"));
        let end = self.close()?;
        if self.rest.starts_with("<!--") {
            return COMMENT.find_at(self.rest, 4).map(|found| found.end());
        }
        if self.rest.starts_with("<![cdata[") {
            let found = CDATA.captures(self.rest)?;
            // Shown wherever it is.
            self.out.push_str(&found[1]);
            return Some(found[0].len());
        }
        Some(end + 1)
    }
}

/// What a number stands for, `#10` or `#xa`.
fn character(number: &str) -> char {
    let number = number.trim_start_matches('#');
    let value = match number.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => number.parse(),
    };
    match value.ok().and_then(char::from_u32) {
        None | Some('\0') => char::REPLACEMENT_CHARACTER,
        Some(c) => windows_1252(c),
    }
}

/// With entities replaced as Python's `html.unescape` does, which needs no semicolon behind old ones.
pub fn unescaped(text: &str) -> String {
    static REFERENCE: LazyLock<Regex> =
        LazyLock::new(|| regex(r"&(?:(#[0-9]+|#[xX][0-9a-fA-F]+);?|([^\t\n\f <&#;]{1,32};?))"));
    let by = |found: &Captures| {
        if let Some(number) = found.get(1) {
            return character(number.as_str()).to_string();
        }
        let name = &found[2];
        let ends = name.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
        let known =
            ends.filter(|&end| end > 1).find_map(|end| Some((NAMES.get(&name[..end])?, end)));
        known.map_or(found[0].to_owned(), |(text, end)| format!("{text}{}", &name[end..]))
    };
    REFERENCE.replace_all(text, by).into_owned()
}
