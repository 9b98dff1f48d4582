//! Encodings of one byte a character, and which characters stand for which parts of UTF-8 read in them.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The bytes from 128 on. Where an encoding has no character, there is that of Latin 1, as web browsers have it.
#[rustfmt::skip]
const UPPER: [&str; 9] = [
    // Windows 1252
    "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹\
     º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ",
    // Windows 1251
    "ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\u{98}™љ›њќћџ\u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕїАБВГДЕЖЗИЙКЛМН\
     ОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя",
    // Windows 1250
    "€\u{81}‚\u{83}„…†‡\u{88}‰Š‹ŚŤŽŹ\u{90}‘’“”•–—\u{98}™š›śťžź\u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬\u{ad}®Ż°±˛ł´µ¶·¸ą\
     ş»Ľ˝ľżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙",
    // Windows 1253
    "€\u{81}‚ƒ„…†‡\u{88}‰\u{8a}‹\u{8c}\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}\u{9d}\
     \u{9e}\u{9f}\u{a0}΅Ά£¤¥¦§¨©ª«¬\u{ad}®―°±²³΄µ¶·ΈΉΊ»Ό½ΎΏΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡÒΣΤΥΦΧΨΩΪΫάέήίΰαβγδεζ\
     ηθικλμνξοπρςστυφχψωϊϋόύώÿ",
    // Windows 1254
    "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}\u{9e}Ÿ\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯\
     °±²³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞßàáâãäåæçèéêëìíîïğñòóôõö÷øùúûüışÿ",
    // Windows 1257
    "€\u{81}‚\u{83}„…†‡\u{88}‰\u{8a}‹\u{8c}¨ˇ¸\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}¯˛\u{9f}\u{a0}¡¢£¤¥\
     ¦§Ø©Ŗ«¬\u{ad}®Æ°±²³´µ¶·ø¹ŗ»¼½¾æĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽßąįāćäåęēčéźėģķīļšńņóōõö÷ųłśūüż\
     ž˙",
    // ISO 8859-2
    "\u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}\u{8d}\u{8e}\
     \u{8f}\u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}\u{9a}\u{9b}\u{9c}\u{9d}\
     \u{9e}\u{9f}\u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ°ą˛ł´ľśˇ¸šşťź˝žżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺć\
     çčéęëěíîďđńňóôőö÷řůúűüýţ˙",
    // Mac OS Roman
    "ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ–—“”‘’÷◊\
     ÿŸ⁄€‹›ﬁﬂ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ",
    // IBM 437
    "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄\
     ▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}",
];
/// Those of the encodings that are like Latin 1, behind which the others are.
pub const LATIN: usize = 7;
/// Mac OS Roman.
pub const MAC: usize = 8;

/// The byte of each character: Latin 1, then the encodings above.
static BYTES: LazyLock<Vec<HashMap<char, u8>>> = LazyLock::new(|| {
    let latin1 = ('\u{80}'..='\u{ff}').collect();
    let tables = UPPER.iter().map(|upper| upper.chars().collect());
    let bytes = |table: Vec<char>| table.into_iter().zip(0x80..=0xff).collect();
    std::iter::once(latin1).chain(tables).map(bytes).collect()
});

/// How many encodings there are.
pub fn count() -> usize {
    UPPER.len() + 1
}

/// Whether an encoding may have lost characters to `\u{fffd}`, for which its byte is 26.
pub fn lossy(encoding: usize) -> bool {
    (1..LATIN).contains(&encoding)
}

/// A text in an encoding, if it has all the characters.
pub fn encoded(text: &str, encoding: usize) -> Option<Vec<u8>> {
    let substitute = |c| lossy(encoding) && c == char::REPLACEMENT_CHARACTER;
    let byte = |c: char| match c {
        '\x1a' if lossy(encoding) => None,
        _ if c.is_ascii() => Some(c as u8),
        _ if substitute(c) => Some(0x1a),
        _ => BYTES[encoding].get(&c).copied(),
    };
    text.chars().map(byte).collect()
}

/// What a control character from 128 on was meant to be.
pub fn windows_1252(c: char) -> char {
    match c {
        '\u{80}'..='\u{9f}' => UPPER[0].chars().nth(c as usize - 0x80).unwrap_or(c),
        _ => c,
    }
}

/// The characters that bytes are in an encoding like Latin 1.
pub fn characters(is: impl Fn(u8) -> bool) -> String {
    BYTES[..LATIN].iter().flatten().filter(|(_, byte)| is(**byte)).map(|(&c, _)| c).collect()
}
