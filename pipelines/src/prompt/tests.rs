use std::time::{Duration, Instant};

use super::clean;

#[test]
fn mojibake_is_decoded() {
    // In lower case, where only some of it can be.
    for (text, expected) in [
        ("the cat\u{e2}\u{80}\u{99}s hat", "the cat's hat"),
        ("a wait\u{e2}\u{80}\u{a6}", "a wait…"),
        ("sm√∂rrebr√∏d", "smörrebrød"),
        ("f├⌐e", "fée"),
    ] {
        assert_eq!(clean(text), expected, "{text:?}");
    }
}

#[test]
fn markup_is_dropped() {
    for (text, expected) in [
        ("a <a href='x>y'>link</a><br/>here", "a linkhere"),
        ("1 < 2 <3", "1 < 2 <3"),
        ("<!-- no --><?no?><!doctype no>yes", "yes"),
        ("<template>no<b>no</template>yes<style>no</style>", "yes"),
        ("<![cdata[yes]]>", "yes"),
        ("caf&eacute; &#9731; &nosuch; x", "café ☃ nosuch x"),
    ] {
        assert_eq!(clean(text), expected, "{text:?}");
    }
}

#[test]
fn marks_are_no_letters_and_superscripts_are() {
    for (text, expected) in [
        ("❤\u{fe0f}123456", "❤\u{fe0f}"),
        ("a,\u{200d}b", "a,\u{200d}b"),
        ("10x20²", "10x20²"),
        ("\u{1f}a\u{1f}.\u{1f}b", "a b"),
    ] {
        assert_eq!(clean(text), expected, "{text:?}");
    }
}

#[test]
fn long_texts_take_no_long_time() {
    let pieces = [
        "a cat, très détaillé, 8k. ",
        "<",
        "&a",
        "</",
        "<!--",
        "<a b='",
        "<a <b ",
        "<a b='>'",
        "<![cdata[",
        "<a></b>",
        "a1",
        "a.",
        "â€",
        "\u{e2}\u{80}",
        "√±",
        "ãã ",
        "＆amp;",
        "\u{301}",
    ];
    let start = Instant::now();
    for piece in pieces {
        clean(&piece.repeat((100 << 10) / piece.len()));
    }
    // A few seconds, where nothing is quadratic.
    assert!(start.elapsed() < Duration::from_secs(60));
}
